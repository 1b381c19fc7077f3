"""Which runs can share one backbone, and the mistakes that a user can make."""

import signal
import socket
import sys
import threading

import pytest
import serving
import step_zero

from hypelora_jax import cli, files
from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run
from hypelora_jax.serve import adapter_pool, batch_sizes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return step_zero.run_folder(tmp_path_factory.mktemp("runs") / "run")


def test_names_are_as_long_as_they_must_be():
    assert list(adapter_pool.names_of(["runs/cola/", "/x/mrpc"])) == ["cola", "mrpc"]
    same = ["runs/cola/seed_0", "runs/mrpc/seed_0", "runs/mrpc/seed_1"]
    assert list(adapter_pool.names_of(same)) == [
        "cola/seed_0",
        "mrpc/seed_0",
        "mrpc/seed_1",
    ]
    with pytest.raises(UserError, match="runs/x/ is given twice"):
        adapter_pool.names_of(["runs/y", "runs/x/", "runs/x"])


def test_batch_sizes_end_with_the_largest():
    assert batch_sizes.batch_sizes(1) == (1,)
    assert batch_sizes.batch_sizes(4) == (1, 4)
    assert batch_sizes.batch_sizes(32) == (1, 4, 16, 32)


def test_other_weights_are_refused_before_any_is_loaded(run, tmp_path):
    record = files.read_json(run / "config.json")
    record["model"] |= {"sha256": "ab", "name": "another"}
    other = Run.create(tmp_path / "other").path
    files.write_json(other / "config.json", record)
    with pytest.raises(UserError, match="other adapts another and run adapts .*tiny"):
        adapter_pool.open_pool([str(run), str(other)], (8,))


@pytest.mark.parametrize(
    ("mode", "more", "message"),
    [
        ("lora", {"seed": 7}, "with other weights"),  # drawn, not read from a file
        pytest.param("full", {}, "fine-tuned in full", marks=pytest.mark.soak),
    ],
)
def test_runs_without_one_backbone(run, tmp_path, monkeypatch, mode, more, message):
    monkeypatch.setitem(step_zero.MODES, "full", ("full", {}))
    other = step_zero.run_folder(tmp_path / "other", mode, **more)
    with pytest.raises(UserError, match=message):
        adapter_pool.open_pool([str(run), str(other)], (8,))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=no_such_run"], "no_such_run"),
        ([], "required: --workdir"),
        (["--workdir={run}", "--workdir={run}"], "is given twice"),
        (["--workdir={run}", "--max_batch=0"], "--max_batch is 0; expected at least 1"),
        (["--workdir={run}", "--rate=-1"], "--rate is -1"),
        (["--workdir={run}", "--window_ms=nan"], "--window is nan"),
        (["--workdir={run}", "--port=99999"], "cannot listen at 127.0.0.1:99999"),
        (["--workdir={run}", "--port={taken}"], "already in use; expected"),
        (["--workdir={run}", "--host=192.0.2.1"], "cannot listen at 192.0.2.1"),
        (["--workdir={run}", "--sets=aps"], "expected --coverage=0.9"),
        (["--workdir={run}", "--abstain=2"], "abstain is 2"),
    ],
)
def test_a_mistake_is_one_line(run, flags, message, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        own = {"run": run, "taken": taken.getsockname()[1]}
        argv = ["serve", "--port=0", *(flag.format(**own) for flag in flags)]
        assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1], err


def test_without_the_extra_a_line_says_so(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "hypelora_jax.serve.server")
    monkeypatch.delattr("hypelora_jax.serve.server")
    assert cli.main(["serve", f"--workdir={run}"]) == 2
    assert "serve needs uvicorn" in capsys.readouterr().err


HALF = (
    b"POST /predict HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    b'content-type: application/json\r\ncontent-length: 14\r\n\r\n{"text": '
)


def test_after_sigterm_a_half_sent_question_is_answered(run):
    """A whole process: SIGTERM while half a question is there."""
    with serving.started(f"--workdir={run}", "--max_batch=1") as (command, port):
        assert serving.ask(port, {"text": "ab"})[0] == 200
        with socket.create_connection(("127.0.0.1", port), timeout=60) as asked:
            asked.sendall(HALF)
            serving.ask(port, {"text": "ab"})  # what came before has been read
            command.terminate()
            serving.wait_for(lambda: refuses(port), lambda: True)
            asked.sendall(b'"ab"}')
            answer = asked.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200") and b'"confidence"' in answer
        assert command.wait(60) == 0
        assert command.stderr.read() == "stopped\n"
        assert command.stdout.read() == ""


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.soak
def test_after_sigint_waiting_questions_are_answered(run):
    flags = (f"--workdir={run}", "--max_batch=4", "--window_ms=2000")
    with serving.started(*flags) as (command, port):
        found = []
        asked = threading.Thread(
            target=lambda: found.append(serving.ask(port, {"text": "ab"}))
        )
        asked.start()
        serving.wait_for(
            lambda: "waiting_texts 1" in serving.call(port, "GET", "/metrics")[2],
            asked.is_alive,
        )
        command.send_signal(signal.SIGINT)
        asked.join(60)
        assert found[0][0] == 200
        assert command.wait(60) == 0
