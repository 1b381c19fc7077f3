"""Adapters that share batches, and that come and go while the service runs."""

import concurrent.futures
import gc
import json
import re
import threading

import jax
import pytest
import serving
import step_zero
import tiny

import hypelora_jax
from hypelora_jax import cli
from hypelora_jax.errors import UserError
from hypelora_jax.serve import adapter_pool, server
from hypelora_jax.serve.adapter_pool import AdapterSource

TEXTS = [f"{n} " + "wor " * (n % 3) for n in range(8)]
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def session(i, mode="lora", **more):
    made = step_zero.session(step_zero.settings(mode, **more))
    return made._replace(trainable=tiny.shaken(made.trainable, seed=i, by=0.2))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with runs that fit the service, that do not, and with what is no run."""
    outer = tmp_path_factory.mktemp("outer")
    root = outer / "root"
    for i in range(4):
        step_zero.save(root / f"r{i}", session(i), 1.0 + i)
    step_zero.save(root / "deep" / "r4", session(4))
    step_zero.save(root / "rank", session(5, lora={"rank": 2, "alpha": 5.0}))
    step_zero.save(root / "seed", session(6, seed=6))
    long = {"source": "files", "max_length": 64}
    step_zero.save(root / "long", session(7, data=long))
    step_zero.save(outer / "secret", session(8))
    (root / "empty").mkdir()
    (root / "file").write_text("no folder")
    (root / "link").symlink_to(outer / "secret")
    (root / "inner_link").symlink_to(root / "r3")
    (root / "hole").mkdir()
    (root / "hole" / "config.json").symlink_to(outer / "secret" / "config.json")
    (root / "odd" / "config.json").mkdir(parents=True)
    (root / "damaged").mkdir()
    (root / "damaged" / "config.json").write_text("{")
    return root


@pytest.fixture(scope="module")
def wanted(root):
    """Of each run what `predict` says to TEXTS, each run loaded alone."""
    folders = {f"r{i}": root / f"r{i}" for i in range(4)} | {"r4": root / "deep" / "r4"}
    return {
        name: hypelora_jax.load(str(folder), batch_sizes=(8,)).predict(TEXTS)
        for name, folder in folders.items()
    }


@pytest.fixture(scope="module")
def port(root, wanted):
    """A service that begins with r0, and has one slot for adapters."""
    folder = AdapterSource.open(str(root), {})
    pool = adapter_pool.open_pool([str(root / "r0")], (8,), swaps=True)
    batching = server.Batching(8, max_loras=1)
    with serving.running(pool, batching, folder=folder) as port:
        yield port


def post(port, path, **body):
    status, _, text = serving.call(port, "POST", path, json.dumps(body))
    return status, json.loads(text)


def metric(port, name):
    return float(
        re.search(rf"^{name} (.*)$", serving.call(port, "GET", "/metrics")[2], re.M)[1]
    )


def names(port):
    text = serving.call(port, "GET", "/adapters")[2]
    return [one["name"] for one in json.loads(text)]


def same(got, want):
    return got["label"] == want["label"] and got["probs"] == pytest.approx(
        want["probs"], abs=1e-5
    )


def check(port, name, want):
    asked = [{"text": text, "adapter": name} for text in TEXTS]
    status, found = post_list(port, asked)
    assert status == 200, found
    for one, right in zip(found, want, strict=True):
        assert same(one, right)


def post_list(port, asked):
    status, _, text = serving.call(port, "POST", "/predict", json.dumps(asked))
    return status, json.loads(text)


def test_a_batch_has_rows_of_several_adapters(root, wanted):
    pool = adapter_pool.open_pool([str(root / f"r{i}") for i in range(3)], (8,))
    with serving.running(pool, server.Batching(8, window=0.05)) as port:
        before = metric(port, "hypelora_batches_total")
        asked = [{"text": t, "adapter": f"r{i % 3}"} for i, t in enumerate(TEXTS)]
        status, found = post_list(port, asked)
        assert status == 200
        for i, got in enumerate(found):
            assert same(got, wanted[f"r{i % 3}"][i])
        assert metric(port, "hypelora_batches_total") == before + 1
        assert metric(port, 'hypelora_texts_total{adapter="r2"}') == 2
        assert post(port, LOAD, lora_name="r3")[0] == 404, "only with --lora_dir"


def test_a_service_with_a_single_run_has_merged_weights(root, wanted):
    plain = adapter_pool.open_pool([str(root / "r1")], (8,))
    swaps = adapter_pool.open_pool([str(root / "r1")], (8,), swaps=True)
    factors = [pool["r1"].fitted.forward.adapt for pool in (plain, swaps)]
    params = {**swaps["r1"].fitted.frozen, **swaps["r1"].fitted.trainable}
    sizes = [len(f(params, swaps["r1"].fitted.alpha, {}).factors) for f in factors]
    assert sizes == [0, 2]
    assert not adapter_pool.in_banks(plain, 32)
    with serving.running(plain, server.Batching(8)) as port:
        check(port, "r1", wanted["r1"])


def test_runs_adapted_from_different_layers_keep_their_factors(tmp_path):
    """The program of the first run has no factors below its lowest layer."""
    folders = [step_zero.run_folder(tmp_path / m, m) for m in ("subset", "lora")]
    pool = adapter_pool.open_pool([str(folder) for folder in folders], (8,))
    for folder in folders:
        alone = hypelora_jax.load(str(folder), batch_sizes=(8,)).predict(TEXTS)
        found = pool[folder.name].predict(TEXTS)
        assert all(map(same, found, alone))


def test_adapters_come_and_go_without_compiling(port, wanted):
    compiled = metric(port, "hypelora_programs_total")
    assert names(port) == ["r0"]
    status, told = post(port, LOAD, lora_name="r1")
    assert status == 200 and told["name"] == "r1" and told["labels"] == ["no", "yes"]
    assert post(port, LOAD, lora_name="other", lora_path="deep/r4")[0] == 200
    assert post(port, LOAD, lora_name="linked", lora_path="inner_link")[0] == 200
    assert names(port) == ["r0", "r1", "other", "linked"]
    for name, run in (("r1", "r1"), ("other", "r4"), ("linked", "r3"), ("r0", "r0")):
        check(port, name, wanted[run])
    status, told = post(port, LOAD, lora_name="r1", lora_path="r2")
    assert status == 409 and told["error"].startswith("r1 is loaded; unload it, or set")
    body = {"lora_name": "r1", "lora_path": "r2", "load_inplace": True}
    assert post(port, LOAD, **body)[0] == 200
    check(port, "r1", wanted["r2"])
    for name in ("r1", "other", "linked"):
        assert post(port, UNLOAD, lora_name=name)[0] == 200
    assert names(port) == ["r0"]
    status, told = post(port, "/predict", text="a", adapter="r1")
    assert status == 404 and "expected one of r0" in told["error"]
    check(port, None, wanted["r0"])
    assert metric(port, "hypelora_programs_total") == compiled


def test_swaps_under_load_give_no_wrong_answer_and_take_no_memory(port, wanted):
    """Clients ask r0, and `b`, which is r1 and r2 in turns, of a bank with one slot."""
    assert post(port, LOAD, lora_name="b", lora_path="r1")[0] == 200
    check(port, "b", wanted["r1"])
    compiled, size = metric(port, "hypelora_programs_total"), live()
    stop, counts = threading.Event(), []

    def client(i):
        n = 0
        while not stop.is_set():
            at = (i + n) % len(TEXTS)
            name = ("r0", "b")[n % 2]
            status, got = post(port, "/predict", text=TEXTS[at], adapter=name)
            right = ("r0",) if name == "r0" else ("r1", "r2")
            assert status == 200, got
            assert any(same(got, wanted[run][at]) for run in right), (name, got)
            n += 1
        counts.append(n)

    with concurrent.futures.ThreadPoolExecutor(6) as clients:
        jobs = [clients.submit(client, i) for i in range(6)]
        try:
            for i in range(10):
                run = f"r{1 + (i + 1) % 2}"
                body = {"lora_name": "b", "lora_path": run, "load_inplace": True}
                assert post(port, LOAD, **body)[0] == 200
                check(port, "b", wanted[run])  # from now on it is the new one
        finally:
            stop.set()
        for job in jobs:
            job.result()
    assert sum(counts) > 60
    assert metric(port, "hypelora_programs_total") == compiled
    assert live() == size
    assert post(port, UNLOAD, lora_name="b")[0] == 200


def live():
    """Bytes of all arrays on the devices."""
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


def test_questions_that_wait_for_an_adapter_are_answered_after_it_left(root, wanted):
    folder = AdapterSource.open(str(root), {})
    pool = adapter_pool.open_pool([str(root / "r0")], (8,), swaps=True)
    with serving.running(pool, server.Batching(8, window=1.0), folder=folder) as port:
        assert post(port, LOAD, lora_name="r1")[0] == 200
        with concurrent.futures.ThreadPoolExecutor(1) as client:
            asked = {"text": TEXTS[0], "adapter": "r1"}
            waiting = client.submit(post, port, "/predict", **asked)
            serving.wait_for(lambda: metric(port, "hypelora_waiting_texts"), lambda: 1)
            assert post(port, UNLOAD, lora_name="r1")[0] == 200
            assert not waiting.done() and names(port) == ["r0"]
            status, got = waiting.result()
        assert status == 200 and same(got, wanted["r1"][0])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../secret", "lora_path is '../secret'; expected the name of a run's folder"),
        ("r1/../../secret", "expected the name"),
        ("r0/../r1", "expected the name"),
        ("{root}/r1", "expected the name"),
        ("{outer}/secret", "expected the name"),
        ("link", "without links that leave it"),
        ("hole", "without links that leave it"),
        ("no_such_run", "expected the name"),
        ("file", "expected the name"),
        ("", "expected the name"),
        (".", "expected the name"),
        ("r1\0", "expected the name"),
        ("\ud800", "expected the name"),
        ("a" * 5000, "expected the name"),
        ("empty", "empty has no config.json"),
        ("odd", "odd cannot be read: Is a directory; expected a finished run"),
        ("damaged", "damaged/config.json cannot be read"),
        ("rank", "its config.lora.rank is 2, and not 3; start the service with it"),
        ("seed", "random:tiny with other weights than random:tiny here"),
        ("long", "reads 64 tokens (data.max_length), but the service was compiled"),
    ],
)
def test_a_path_that_is_no_run_of_the_folder_is_refused(port, root, path, message):
    own = path.format(root=root, outer=root.parent)
    status, told = post(port, LOAD, lora_name="x", lora_path=own)
    error = told["error"]
    assert status == 422 and message in error, error
    assert "\n" not in error and len(error) < 300
    assert str(root) not in error or path.startswith("{"), "where the folder is"
    assert names(port) == ["r0"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (LOAD, "{", 400, 'not JSON; expected {"lora_name": "..."}'),
        (LOAD, "{}", 422, 'body.lora_name: field required; expected {"lora_name"'),
        (LOAD, '{"lora_name": ""}', 422, "body.lora_name"),
        (LOAD, '{"lora_name": "a\\nb"}', 422, "body.lora_name"),
        (LOAD, '{"lora_name": "r1", "x": 1}', 422, "body.x"),
        (LOAD, '{"lora_name": "r0"}', 409, "r0 is loaded; unload it"),
        (UNLOAD, '{"lora_name": "r0"}', 409, "r0 answers questions that name no"),
        (UNLOAD, '{"lora_name": "no"}', 404, "no adapter 'no'; expected one of r0"),
    ],
)
def test_a_hostile_body_is_refused_with_a_line(port, path, body, status, message):
    got, _, text = serving.call(port, "POST", path, body)
    error = json.loads(text)["error"]
    assert got == status and message in error and "\n" not in error, error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_dir=no_such_folder"], "--lora_dir is no_such_folder; expected a loc"),
        (["--lora_dir="], "--lora_dir is empty"),
        (["--max_loras=0"], "--max_loras is 0; expected at least 1"),
    ],
)
def test_a_mistake_is_one_line(root, flags, message, capsys):
    run = f"--workdir={root / 'r0'}"
    assert cli.main(["serve", run, "--port=0", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1], err


def test_a_run_that_shares_no_batches_needs_another_to_be_the_model(tmp_path):
    given = {"uncertainty": {"kind": "mc_dropout", "samples": 2}}
    run = step_zero.run_folder(tmp_path / "run", **given)
    pool = adapter_pool.open_pool([str(run)], (8,), swaps=True)
    folder = AdapterSource.open(str(tmp_path), {})
    with pytest.raises(UserError, match="--lora_dir needs a run that can share"):
        server.server_of(pool, "127.0.0.1", server.Batching(8), folder=folder)


def test_the_flag_opens_the_paths(root):
    """A whole process."""
    flags = (f"--workdir={root / 'r0'}", f"--lora_dir={root}", "--max_batch=1")
    with serving.started(*flags) as (_, port):
        described = json.loads(serving.call(port, "GET", "/openapi.json")[2])
        assert {LOAD, UNLOAD} <= set(described["paths"])
        assert post(port, LOAD, lora_name="r1")[0] == 200
        assert post(port, "/predict", text="ab", adapter="r1")[0] == 200
