"""Limits and batches without a socket: rates, slow bodies, full queues, costs."""

import asyncio
import json
from collections import Counter

import numpy as np
import pytest

from hypelora_jax.serve import limits
from hypelora_jax.serve.batch_sizes import best_packed, best_rows
from hypelora_jax.serve.limits import Limits, limited
from hypelora_jax.serve.meters import LATEST, Meters, prometheus


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def respond(app, messages=(), client="10.0.0.1", **headers):
    """(status, headers, body) of one POST whose body comes in these pieces."""
    named = {"content-type": "application/json", **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "client": (client, 1),
        "headers": [(k.encode(), v.encode()) for k, v in named.items()],
    }
    pieces, sent = list(messages), []

    async def receive():
        if not pieces:
            await asyncio.sleep(60)
        body = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_the_rate_is_of_each_address_and_comes_back(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    meters = Meters()
    app = limited(echo, Limits(rate=2), meters, ())
    assert [respond(app, [b"{}"])[0] for _ in range(3)] == [200, 200, 429]
    assert respond(app, [b"{}"], client="10.0.0.2")[0] == 200
    status, headers, body = respond(app, [b"{}"])
    assert status == 429 and headers[b"retry-after"] == b"1"
    assert "more than 2 requests a second" in json.loads(body)["error"]
    now[0] += 0.5
    assert [respond(app, [b"{}"])[0] for _ in range(2)] == [200, 429]
    assert meters.requests["/predict", 429] == 3


def test_addresses_are_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr(limits, "CLIENTS", 2)
    app = limited(echo, Limits(rate=1), Meters(), ())
    clients = ["a", "a", "b", "c", "a"]
    got = [respond(app, [b"{}"], client=c)[0] for c in clients]
    assert got == [200, 429, 200, 200, 200], "the fifth knows nothing of the first"


def test_a_slow_body_is_given_up():
    app = limited(echo, Limits(patience=0.05), Meters(), ())
    status, headers, body = respond(app)
    assert status == 408 and headers[b"connection"] == b"close"
    assert "the whole body did not arrive" in json.loads(body)["error"]


def test_a_whole_body_reaches_the_service_and_a_large_one_does_not():
    app = limited(echo, Limits(max_body=6), Meters(), ())
    assert respond(app, [b"abc", b"def"])[2] == b"abcdef"
    assert respond(app, [b"abc", b"def", b"g"])[0] == 413


@pytest.mark.parametrize(
    ("costs", "waiting", "rows"),
    [
        ({1: 1.0, 4: 1.1, 16: 1.2}, 3, 4),  # a row more costs nothing: all at once
        ({1: 1.0, 4: 1.1, 16: 1.2}, 13, 16),
        ({1: 1.0, 4: 1.1, 16: 1.2}, 1, 1),
        ({1: 1.0, 4: 4.0, 16: 16.0}, 2, 1),  # each costs the same: no padding
        ({1: 1.0, 4: 4.0, 16: 16.0}, 7, 4),
        ({1: 1.0, 4: 4.0, 16: 16.0}, 13, 16),  # but for a little
        ({1: 1.0, 4: 2.0, 16: 7.0}, 2, 4),  # half a row's cost: padding pays
        ({1: 1.0, 4: 2.0, 16: 7.0}, 9, 4),
        ({1: 1.0, 4: 2.0, 16: 7.0}, 40, 16),
    ],
)
def test_the_batch_that_costs_least_a_text(costs, waiting, rows):
    seconds = {(n, 8): s for n, s in costs.items()} | {(64, 16): 0.0}
    assert best_rows(seconds, 8, waiting) == rows


def test_a_packed_batch_takes_the_oldest_texts_that_fit():
    seconds = {(n, 16): float(n) for n in (1, 2, 4)}
    lengths = np.array([16, 3, 16, 5, 9, 9])
    assert best_packed(seconds, 16, lengths[:1]) == (1, 1)
    assert best_packed(seconds, 16, lengths[:4]) == (2, 2)  # 4 rows would be 3 and 1
    assert best_packed(seconds, 16, lengths) == (4, 5)
    cheap = {(1, 16): 1.0, (2, 16): 2.0, (4, 16): 9.0}
    assert best_packed(cheap, 16, lengths) == (2, 2)


def test_labels_are_escaped_and_quantiles_are_of_the_latest():
    meters = Meters()
    meters.saw_batch(Counter({'a"b\\c\n': 3}), 4)
    for seconds in [9.0] * 5 + [0.25] * LATEST:
        meters.saw_request("/predict", 200, seconds)
    meters.saw_request("/predict", 429, 99.0)
    text = prometheus(meters)
    assert 'hypelora_texts_total{adapter="a\\"b\\\\c\\n"} 3' in text
    assert "hypelora_batch_size_mean 3.0" in text
    assert 'hypelora_request_seconds{quantile="0.99"} 0.25\n' in text
    assert f"hypelora_request_seconds_count {LATEST + 5}\n" in text
