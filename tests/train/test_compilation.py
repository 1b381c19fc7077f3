"""Programs that are compiled ahead: their number, their order, errors, the results."""

import contextlib
import json
import threading
from collections import Counter
from concurrent.futures import Future

import jax
import numpy as np
import process
import pytest

from hypelora_jax import cli
from hypelora_jax.config.loading import load_settings
from hypelora_jax.data import buckets
from hypelora_jax.evaluate import evaluation
from hypelora_jax.run.paths import Run
from hypelora_jax.train import loop
from hypelora_jax.train.compilation import programs as programs_lib
from hypelora_jax.train.compilation.programs import Job, Programs
from hypelora_jax.train.session import load_corpus, open_session, with_data

EDGES = (24, 32)
SMALL = ("--config.data.num_examples=96", "--config.data.max_length=32")
SMALL += ("--config.optim.num_epochs=2", "--config.optim.batch_size=16")


class Program:
    """Stands for a jitted function; says when it is compiled and called."""

    def __init__(self, error: Exception | None = None):
        self.said: list = []
        self.threads: set = set()
        self.compiled, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.error = error

    def lower(self, *args):
        self.threads.add(threading.current_thread().name)
        self.said.append(("compile", args[-1]["ids"].shape))
        return self

    def compile(self):
        assert self.go_on.wait(60)
        if self.error:
            raise self.error
        self.compiled.set()

    def __call__(self, batch):
        self.said.append(("call", batch["ids"].shape))
        return batch


def of_length(length: int) -> dict:
    return {"ids": np.zeros((2, length))}


def jobs(program: Program, *lengths: int) -> list[Job]:
    return [
        Job("step", program, one, lambda one=one: (one,))
        for one in map(of_length, lengths)
    ]


def settled(programs: Programs) -> None:
    for future in programs._futures.values():
        if not future.cancelled():
            future.exception(timeout=60)


def test_programs_are_compiled_in_order_after_the_first_call():
    program, shown = Program(), []
    with Programs(shown.append) as programs:
        step = programs.waits("step", program)
        programs.announce(jobs(program, 8, 16, 24))
        step(of_length(8))
        assert program.said == [("call", (2, 8))]  # which compiles it
        step(of_length(8))
        settled(programs)
        assert [x for x in program.said if x[0] == "compile"] == [
            ("compile", (2, 16)),
            ("compile", (2, 24)),
        ]
        assert program.threads == {"compile_0"}
        step(of_length(24))
    assert shown == ["compiling 1 of 3", ""], "what is there already is not shown"


def test_what_a_compiler_leaves_is_given_back(monkeypatch):
    program = Program()
    trim = lambda: program.said.append(("trim", None))  # noqa: E731
    monkeypatch.setattr(programs_lib.memory, "trim", trim)
    with Programs(lambda text: None) as programs:
        step = programs.waits("step", program)
        programs.announce(jobs(program, 8, 16))
        step(of_length(8))
        assert [what for what, _ in program.said] == ["trim", "call", "trim"]
        programs._start()
        settled(programs)
        assert [what for what, _ in program.said[3:]] == ["compile", "trim"]
        step(of_length(8))
        assert program.said[5:] == [("call", (2, 8))], "nothing is compiled"


def begun(programs, program):
    """The step for 8, 16 and 24 tokens: 8 was called, the thread has begun with 16."""
    step = programs.waits("step", program)
    programs.announce(jobs(program, 8, 16, 24))
    step(of_length(8))
    programs._start()
    while not program.said[1:]:
        pass
    return step


def test_a_call_waits_for_a_program_that_is_being_compiled():
    program, shown = Program(), []
    program.go_on.clear()

    def show(text: str) -> None:
        shown.append(text)
        if text == "compiling 2 of 3":
            program.go_on.set()

    with Programs(show) as programs:
        step = begun(programs, program)
        step(of_length(16))
        assert program.compiled.is_set() and program.said[-1] == ("call", (2, 16))
    assert shown[2:4] == ["compiling 2 of 3", ""]


def test_a_call_compiles_what_the_thread_has_not_begun():
    program = Program()
    program.go_on.clear()
    with Programs(lambda text: None) as programs:
        step = begun(programs, program)
        step(of_length(24))  # does not wait for 16
        assert ("call", (2, 24)) in program.said
        program.go_on.set()
    settled(programs)
    assert ("compile", (2, 24)) not in program.said


def test_leaving_drops_what_is_waiting():
    program = Program()
    program.go_on.clear()
    with Programs(lambda text: None) as programs:
        begun(programs, program)
    program.go_on.set()
    settled(programs)
    programs._thread.shutdown(wait=True)
    assert program.said == [("call", (2, 8)), ("compile", (2, 16))]


def test_an_error_is_raised_by_the_call_that_needs_the_program():
    good, bad = Program(), Program(ValueError("no such instruction"))
    with Programs(lambda text: None) as programs:
        step = programs.waits("step", good)
        programs.announce([*jobs(good, 8), *jobs(bad, 16), *jobs(good, 24)])
        for length in (8, 8):
            step(of_length(length))
        settled(programs)
        step(of_length(24))
        with pytest.raises(ValueError, match="no such instruction"):
            step(of_length(16))


class AtOnce:
    """An executor without a thread, so that a test does not depend on its speed."""

    def __init__(self, *args):
        del args

    def submit(self, work, *args) -> Future:
        future: Future = Future()
        try:
            future.set_result(work(*args))
        except Exception as e:
            future.set_exception(e)
        return future

    def shutdown(self, **options) -> None:
        del options


def session_of():
    settings = load_settings("smoke", SMALL)
    corpus = load_corpus(settings)
    session = with_data(open_session(settings, corpus.task), corpus)
    lengths, size = session.datasets["train"].lengths, settings.optim.batch_size
    steps = buckets.steps_per_epoch(lengths, EDGES, size)
    # two buckets, whatever the data would choose
    return session._replace(
        edges=EDGES,
        steps_per_epoch=steps,
        total_steps=2 * steps,
    )


@contextlib.contextmanager
def counted():
    """Counts the programs that JAX makes, by name and thread."""
    found: Counter = Counter()

    def listen(event: str, seconds: float, fun_name: str = "", **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found[fun_name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def trained(folder, session):
    run = Run.create(folder)
    checkpoint, _ = loop.train(session, run, progress=False)
    rates = ("examples_per_s", "tokens_per_s")
    rows = [
        {name: x for name, x in row.items() if name not in rates}
        for row in process.rows(folder)
    ]
    return run, checkpoint, rows


@pytest.mark.parametrize("thread", [True, False])
def test_ahead_or_not_the_bits_are_the_same_and_programs_equal_buckets(
    tmp_path, monkeypatch, thread
):
    session = session_of()
    if not thread:
        monkeypatch.setattr(programs_lib, "ThreadPoolExecutor", AtOnce)
    with counted() as found:
        run, ahead, rows = trained(tmp_path / "ahead", session)
        assert found["jit(step)"] == len(EDGES), found
        assert found["jit(adapt)"] == 1, found
        classify = found["jit(classify)"]
        assert classify == len(EDGES), found
        # the evaluation of the chosen checkpoint uses the same functions
        fitted = evaluation.of_checkpoint(run, session, ahead)
        fitted.answer(session.datasets["test"])
        assert found["jit(classify)"] == classify and found["jit(adapt)"] == 1, found
    nothing = lambda training, show: contextlib.nullcontext()  # noqa: E731
    monkeypatch.setattr(loop, "compiled_ahead", nothing)
    _, plain, same_rows = trained(tmp_path / "plain", session_of())
    assert rows == same_rows and len(rows) >= 4
    for one, two in zip(
        jax.tree.leaves(ahead.state.params),
        jax.tree.leaves(plain.state.params),
        strict=True,
    ):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_an_error_of_the_compiler_is_one_line(tmp_path, monkeypatch, capsys):
    def fails(job: Job) -> None:
        raise RuntimeError(f"{job.name} cannot be compiled")

    monkeypatch.setattr(programs_lib, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(programs_lib, "_compile", fails)
    assert cli.main(["train", "--config=smoke", *SMALL, f"--workdir={tmp_path}"]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hypelora: internal error: RuntimeError: ")
    assert "cannot be compiled; --debug" in last


COUNT = """
import json, sys
from collections import Counter
import jax
found = Counter()
jax.monitoring.register_event_listener(lambda event, **_: found.update([event]))
from hypelora_jax import cli
code = cli.main(sys.argv[1:])
print(json.dumps(found))
sys.exit(code)
"""


def test_a_second_start_in_another_folder_compiles_nothing(tmp_path):
    own = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN")
    env = {n: x for n, x in process.ENV.items() if not n.startswith(own)}
    env["HYPELORA_CACHE"] = str(tmp_path / "cache")
    for name in ("one", "two"):
        args = ("train", "--config=smoke", *SMALL, f"--workdir={tmp_path / name}")
        run = process.python("-c", COUNT, *args, env=env)
        out, err = run.communicate(timeout=900)
        assert run.returncode == 0, err[-2000:]
        found = json.loads(out.splitlines()[-1])
        asked = found["/jax/compilation_cache/compile_requests_use_cache"]
        hits = found.get("/jax/compilation_cache/cache_hits", 0)
        assert asked > 10 and hits == (asked if name == "two" else 0), found
