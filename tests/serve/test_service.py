"""The service over real HTTP: the answers of `predict`, batches, and refusals."""

import concurrent.futures
import http.client
import json
import re
import socket

import jax
import pytest
import serving
import step_zero
from prometheus_client import parser

import hypelora_jax
from hypelora_jax.serve import adapter_pool, batching, server
from hypelora_jax.serve.limits import Limits

TEXTS = [f"{n} " + "word " * (n % 6) for n in range(24)]
LIMITS = Limits(max_body=20_000, max_texts=30, max_chars=500)
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if event == server.COMPILED else None
)


def run_of(path, by, task="binary", temperature=None):
    made = step_zero.session(step_zero.settings("lora"), task, by)
    return str(step_zero.save(path, made, temperature))


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    return {
        "plain": run_of(path / "plain", 0.1, temperature=1.5),
        "again": run_of(path / "again", 0.2),
        "pairs": run_of(path / "pairs", 0.1, "three"),
    }


@pytest.fixture(scope="module")
def adapters(workdirs):
    return adapter_pool.open_pool(list(workdirs.values()), batch_sizes=(8,))


@pytest.fixture(scope="module")
def programs(adapters):
    """How many programs each adapter compiled, warmed in their order."""
    out = {}
    for name, own in adapters.items():
        COMPILED.clear()
        own.warm()
        out[name] = len(COMPILED)
    return out


@pytest.fixture(scope="module")
def port(adapters, programs):
    with serving.running(adapters, server.Batching(8), LIMITS) as port:
        yield port


@pytest.fixture(scope="module")
def wanted(workdirs):
    """Of each adapter what `predict` says to TEXTS, each run loaded alone."""
    out = {}
    for name, workdir in workdirs.items():
        own = TEXTS if name != "pairs" else list(zip(TEXTS, TEXTS[::-1], strict=True))
        out[name] = hypelora_jax.load(workdir, batch_sizes=(8,)).predict(own)
    return out


def questions(name):
    both = zip(TEXTS, TEXTS[::-1], strict=True)
    pair = name == "pairs"
    return [
        {"text": a, "adapter": name} | ({"text_b": b} if pair else {}) for a, b in both
    ]


def equal(got, wanted):
    assert got.keys() == wanted.keys() and got["label"] == wanted["label"]
    assert got["confidence"] == pytest.approx(wanted["confidence"], abs=1e-5)
    assert got["probs"] == pytest.approx(wanted["probs"], abs=1e-5)


def metrics(port):
    """{(name, labels): value} of /metrics, as Prometheus' own parser reads it."""
    status, headers, text = serving.call(port, "GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_concurrent_answers_equal_those_of_predict(port, wanted):
    """24 texts of 3 adapters, one by one from 24 clients, then as one list."""
    before = metrics(port)
    every = [q for name in wanted for q in questions(name)]
    with concurrent.futures.ThreadPoolExecutor(24) as clients:
        found = list(clients.map(lambda q: serving.ask(port, q), every))
    every_wanted = [one for name in wanted for one in wanted[name]]
    for (status, got), want in zip(found, every_wanted, strict=True):
        assert status == 200
        equal(got, want)
    mixed = [0, 30, 1, 60, 24, 70]
    status, several = serving.ask(port, [every[i] for i in mixed])
    assert status == 200
    for got, i in zip(several, mixed, strict=True):
        equal(got, every_wanted[i])
    now = metrics(port)
    compiled = "hypelora_programs_total"  # by all of this process
    assert now[compiled,] == before[compiled,], "nothing was compiled"
    assert now["hypelora_texts_total", "pairs"] == 24 + 2
    assert now["hypelora_batch_size_mean",] > 1
    assert now["hypelora_batch_rows_total",] >= 78
    assert now["hypelora_request_seconds_count",] >= 73
    half, most = (now["hypelora_request_seconds", q] for q in ("0.5", "0.99"))
    assert 0 < half <= most
    assert now["hypelora_waiting_texts",] == 0


def test_the_first_adapter_answers_where_none_is_named(port, wanted):
    status, got = serving.ask(port, {"text": TEXTS[3]})
    assert status == 200
    equal(got, wanted["plain"][3])


def test_one_backbone_and_no_program_for_a_further_adapter(
    workdirs, adapters, programs
):
    plain, again, pairs = (adapters[name].fitted for name in workdirs)
    assert plain.forward.classify is again.forward.classify
    assert plain.forward.classify is not pairs.forward.classify  # another head
    one = jax.tree.leaves(plain.frozen["backbone"])
    for other in (again, pairs):
        mine = jax.tree.leaves(other.frozen["backbone"])
        assert all(a is b for a, b in zip(one, mine, strict=True))
        assert not other.session.frozen and not other.session.trainable
    shapes = len(adapters["plain"].edges)
    assert programs["plain"] >= shapes and programs["pairs"] >= shapes
    assert programs["again"] < shapes, "only what makes its factors"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "the body is not JSON; expected"),
        ("", 422, "expected"),
        ("[" * 9000, 400, "body"),
        ("1" * 9000, 400, "body"),
        (b"\xff\xfe", 400, "body"),
        ("null", 422, "expected"),
        ("[]", 422, "at least 1 item"),
        ('{"text": 3}', 422, "body.text: input should be a valid string"),
        ('{"text": NaN}', 422, "body.text"),
        ('{"text": ["a"]}', 422, "body.text"),
        ('{"texts": "a"}', 422, "body.text: field required"),
        ('{"text": "a", "b\\nc": 1}', 422, "body.b c: extra inputs"),
        ('{"text": "a", "\\ud800": 1}', 422, "unicode"),
        ('{"text": "a", "adapter": 1}', 422, "body.adapter"),
        ('[{"text": "a"}, 3]', 422, "body[1]"),
        ('{"text": " "}', 422, "not empty"),
        ('{"text": "\\ud800"}', 422, "expected whole characters"),
        ('{"text": "a", "text_b": "b"}', 422, "expected a text"),
        ('{"text": "a", "adapter": "pairs"}', 422, "expected a pair of texts"),
        ('{"text": "a", "adapter": "no"}', 404, "expected one of plain, again, pairs"),
        ('{"text": "a", "adapter": ""}', 404, "no adapter ''"),
        ('{"text": "a", "adapter": "../plain"}', 404, "no adapter '../plain'"),
        (json.dumps([{"text": "a"}] * 31), 413, "31 questions; expected at most 30"),
        (json.dumps({"text": "a" * 501}), 413, "501 characters; expected at most 500"),
        ("a" * 20_001, 413, "too large; expected at most 20000 bytes"),
    ],
)
def test_a_hostile_body_is_refused_with_a_line(port, body, status, message):
    got, headers, text = serving.call(port, "POST", "/predict", body)
    error = json.loads(text)["error"]
    assert (got, headers["content-type"]) == (status, "application/json"), error
    assert message in error and "\n" not in error and len(error) < 300


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/predict", {}, 405),
        ("DELETE", "/predict", {}, 405),
        ("GET", "/../../etc/passwd", {}, 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, 404),
        ("GET", "//etc/passwd", {}, 404),
        ("GET", "/docs/oauth2-redirect", {}, 404),
        ("POST", "/predict", {"content-type": "text/plain"}, 415),
        ("POST", "/predict", {}, 415),
        ("GET", "/healthz", {"host": "elsewhere.example"}, 400),
        ("POST", "/predict", serving.JSON | {"content-length": "1000000000"}, 413),
        ("POST", "/predict", serving.JSON | {"content-length": "-1"}, 400),
        ("POST", "/predict", serving.JSON | {"content-length": "x"}, 400),
    ],
)
def test_hostile_requests_are_refused(port, method, path, headers, status):
    got, _, text = serving.call(port, method, path, None, headers)
    assert got == status, text


def test_chunks_that_never_say_how_many_are_bounded(port):
    chunks = (b"a" * 9_000 for _ in range(10))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", chunks, serving.JSON, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_headers_without_end_are_bounded(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 20_000)
        assert raw.recv(99).startswith(b"HTTP/1.1 400")


def test_no_http_at_all_and_a_client_that_leaves_harm_nobody(port):
    for sent in (
        b"\x00\x01\x02\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{",
    ):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(sent)
    assert serving.ask(port, {"text": "ab"})[0] == 200


def test_a_fault_of_ours_is_500_and_the_next_is_answered(port, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(batching, "_fields", None)
        status, got = serving.ask(port, {"text": "ab"})
    assert status == 500 and got == {"error": "the service failed; its log says why"}
    assert serving.ask(port, {"text": "ab"})[0] == 200


def test_pages_fetch_nothing_from_elsewhere(port):
    for path in ("/", "/docs"):
        status, headers, text = serving.call(port, "GET", path)
        assert status == 200 and "text/html" in headers["content-type"]
        assert "default-src 'none'" in headers["content-security-policy"]
        links = set(re.findall(r"https?://[^\"' )]*", text))
        assert links <= {"http://www.w3.org/2000/svg"}, "a name, not an address"
    status, _, text = serving.call(port, "GET", "/openapi.json")
    described = json.loads(text)
    assert {"/predict", "/adapters", "/healthz", "/metrics"} == set(described["paths"])
    assert "HTTPValidationError" not in text, "what FastAPI sends, but we do not"
    status, _, text = serving.call(port, "GET", "/adapters")
    told = {one["name"]: one for one in json.loads(text)}
    assert list(told) == ["plain", "again", "pairs"]
    assert told["pairs"]["pair"] and told["pairs"]["labels"] == ["a", "b", "c"]
    assert json.loads(serving.call(port, "GET", "/healthz")[2]) == {"status": "ok"}
