"""Honest clients among hostile and slow ones: nobody gets a wrong answer or waits."""

import asyncio
import json
import socket
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import serving
import step_zero

import hypelora_jax
from benchmarks import load
from hypelora_jax.serve import adapter_pool, connections, server
from hypelora_jax.serve.limits import Limits

BRACKETS = "[" * 100_000 + "]" * 100_000
PACE = 0.1  # seconds between two bytes of a slow client, or two requests of another


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return step_zero.run_folder(tmp_path_factory.mktemp("run") / "run")


def asked(model, texts):
    """Pairs (request, answer of `predict`)."""
    bodies = [load.request(json.dumps({"text": text})) for text in texts]
    return list(zip(bodies, model.predict(texts), strict=True))


# Each hostile client is a function of an open connection; it returns what happened.


async def brackets(reader, writer):
    writer.write(load.request(BRACKETS))
    return (await load.answer(reader))[0]


async def vanishes(reader, writer):
    writer.write(load.request(json.dumps({"text": "a long text"}))[:-5])
    await writer.drain()
    writer.transport.abort()
    return "left"


async def trickles(reader, writer, head):
    """Send a byte now and then until the service answers or closes the connection."""
    writer.write(head)
    answer = asyncio.create_task(reader.read(12))
    while not answer.done():
        writer.write(b" ")
        await asyncio.wait([answer], timeout=PACE)
    return (await answer)[9:].decode() or "closed"


def slow_body(reader, writer):
    head = load.request("{" + " " * 10_000).partition(b"{")[0]
    return trickles(reader, writer, head)


def slow_head(reader, writer):
    return trickles(reader, writer, b"POST /predict HTTP/1.1\r\nx: y")


HOSTILE = (brackets, vanishes, slow_body, slow_head)


async def attack(port, kind, seen):
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            seen[kind.__name__, await kind(reader, writer)] += 1
        except (OSError, EOFError):
            seen[kind.__name__, "closed"] += 1
        finally:
            writer.close()
        await asyncio.sleep(PACE)


async def attacked(port, questions, honest, hostile, seconds):
    """(tally of the honest clients, what the hostile ones saw) of a load."""
    seen = Counter()
    tasks = [
        asyncio.create_task(attack(port, HOSTILE[n % len(HOSTILE)], seen))
        for n in range(hostile)
    ]
    tally, _ = await load.load(port, questions, honest, seconds)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
    return tally, seen


def check_answers(tally):
    assert tally.errors == [] and max(tally.off) <= 1e-5


def check_seen(seen):
    """Each hostile client got what it should, whenever it got anything."""
    assert {(name, what) for name, what in seen} == {
        ("brackets", 400),
        ("vanishes", "left"),
        ("slow_body", "408"),
        ("slow_head", "closed"),
    }, seen


def test_honest_clients_among_hostile_ones(run, monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    pool = adapter_pool.open_pool([str(run)], batch_sizes=(8,))
    (model,) = pool.values()
    limits = Limits(rate=0, patience=0.5)
    with serving.running(pool, server.Batching(8), limits) as port:
        questions = asked(model, load.drawn(20))
        tally, seen = asyncio.run(attacked(port, questions, 8, 8, 3))
        check_answers(tally)
        assert len(tally.seconds) > 20
        check_seen(seen)


def test_headers_that_do_not_come_are_given_up_and_idle_connections_are_not(
    run, monkeypatch
):
    monkeypatch.setattr(connections, "PATIENCE", 0.4)
    pool = adapter_pool.open_pool([str(run)], batch_sizes=(8,))
    request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with serving.running(pool, server.Batching(8)) as port:
        for answered, begun in ((0, b""), (0, b"GET / HT"), (1, b"GET / HT")):
            with closing(socket.create_connection(("127.0.0.1", port), 30)) as place:
                if answered:
                    place.sendall(request)
                    assert place.recv(4096).startswith(b"HTTP/1.1 200")
                start = time.monotonic()
                place.sendall(begun)
                while place.recv(4096):
                    pass
                assert 0.3 < time.monotonic() - start < 20
        with closing(socket.create_connection(("127.0.0.1", port), 30)) as place:
            for _ in range(2):
                place.sendall(request)
                assert place.recv(4096).startswith(b"HTTP/1.1 200")
                time.sleep(0.7)  # longer than PATIENCE, without half a request


def resident(pid):
    """Memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


@pytest.mark.soak
def test_200_clients_for_a_minute_one_in_ten_hostile(run):
    """p99 of the honest at most doubles, and the memory comes back to within 5 %."""
    model = hypelora_jax.load(str(run), batch_sizes=(32,))
    questions = asked(model, load.drawn(500))
    with serving.started(f"--workdir={run}", "--rate=0") as (command, port):
        asyncio.run(load.load(port, questions, 180, 10))  # warms allocator and caches
        alone, _ = asyncio.run(load.load(port, questions, 180, 60))
        before = resident(command.pid)
        tally, seen = asyncio.run(attacked(port, questions, 180, 20, 60))
        time.sleep(connections.PATIENCE + 2)  # until the last slow client is given up
        after = resident(command.pid)
    p99, p99_alone = (np.quantile(t.seconds, 0.99) for t in (tally, alone))
    print(
        f"honest p99 {1000 * p99:.0f} ms, alone {1000 * p99_alone:.0f} ms; "
        f"{len(tally.seconds)} and {len(alone.seconds)} answers; "
        f"{before:.0f} to {after:.0f} MiB; {dict(seen)}"
    )
    for one in (tally, alone):
        check_answers(one)
    check_seen(seen)
    assert p99 <= 2 * p99_alone
    assert after <= 1.05 * before
