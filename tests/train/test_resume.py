"""A run that is killed or asked to stop ends with the same bits as one that is not."""

import signal
import time

import jax
import numpy as np
import process
import pytest
from etils import epath

from hypelora_jax import cli
from hypelora_jax.data.iterator import train_iterator
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.train import session as session_lib
from hypelora_jax.train.checkpoint import selection
from hypelora_jax.train.checkpoint.checkpoints import Checkpoints
from hypelora_jax.train.training import abstract_state, extras

STEPS = 12  # of process.TINY


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    done = process.run("train", *process.TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir


def final_state(workdir, steps, epochs):
    """All that the last checkpoint holds, as arrays; the data iterator's state."""
    run = Run.open(workdir)
    settings = records.settings_of(records.read_record(run))
    corpus = session_lib.load_corpus(settings)
    session = session_lib.open_session(settings, corpus.task)
    session = session_lib.with_data(session, corpus)
    state = abstract_state(session)
    data, keys = session.datasets["train"], session_lib.keys(settings)
    iterator = train_iterator(data, session.edges, 16, keys.data, epochs)
    own = extras(session.frozen)
    with Checkpoints(run) as saved:
        got = saved.restore(steps, state, own, selection.Progress._fields, iterator)
    key = jax.random.key_data(got.state.key)
    arrays = got.state.step, got.state.params, got.state.opt_state, key, got.frozen
    return arrays, got.progress, iterator.get_state()


def same_bits(one, two, last=STEPS, epochs=2):
    a, *rest = final_state(one, last, epochs)
    b, *other_rest = final_state(two, last, epochs)
    assert rest == other_rest
    leaves = jax.tree.leaves_with_path(a)
    assert len(leaves) > 10
    for (path, x), y in zip(leaves, jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
    rates = ("examples_per_s", "tokens_per_s")  # not the same from run to run
    lasting = [
        [{k: v for k, v in row.items() if k not in rates} for row in process.rows(d)]
        for d in (one, two)
    ]
    assert lasting[0] == lasting[1]
    steps = [row["step"] for row in lasting[0] if row["split"] == "train"]
    assert steps == list(range(1, last + 1)), "each step once"


def newest_array_file(workdir):
    """The biggest file of the newest complete checkpoint: the arrays of the state."""
    folder = workdir / "checkpoints"
    step = selection.complete(epath.Path(folder))[-1]
    files = [p for p in (folder / str(step)).rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


@pytest.mark.soak  # in short: the next ones; tests/run/test_old_runs.py goes on too
@pytest.mark.fault(
    "SIGKILL; a second run on the folder",
    "the second is refused; the lock dies with its run, which goes on to the same bits",
)
def test_killed_and_started_again(unbroken, tmp_path, capsys):
    workdir = tmp_path / "run"
    args = ("train", *process.TINY, f"--workdir={workdir}")
    first = process.start(*args)
    process.wait_for_step(first, workdir, 3)
    assert cli.main(list(args)) == 2
    assert f"is in use by process {first.pid} on" in capsys.readouterr().err
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    second = process.run(*args)  # the lock died with its process
    assert second.returncode == 0, second.stderr[-2000:]
    same_bits(unbroken, workdir)


@pytest.mark.soak  # in short: tests/train/test_checkpoints.py
@pytest.mark.fault("SIGKILL, then a flipped bit", "named; the checkpoint before it")
def test_killed_and_its_newest_checkpoint_damaged(unbroken, tmp_path):
    workdir = tmp_path / "run"
    args = ("train", *process.TINY, f"--workdir={workdir}")
    process.killed(workdir, 8, "train", *process.TINY)
    path = newest_array_file(workdir)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    second = process.run(*args)
    assert second.returncode == 0, second.stderr[-2000:]
    assert f"{path.name} is damaged: its SHA-256 differs" in second.stderr
    same_bits(unbroken, workdir)


@pytest.mark.fault("SIGTERM or Ctrl-C", "saves, exits 75 or 130; same bits in the end")
@pytest.mark.parametrize(
    "number, code",
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak),
    ],
)
def test_asked_to_stop_saves_and_goes_on(unbroken, tmp_path, number, code):
    workdir = tmp_path / "run"
    args = ("train", *process.TINY, f"--workdir={workdir}")
    first = process.start(*args)
    process.wait_for_step(first, workdir, 3)
    first.send_signal(number)
    _, err = first.communicate(timeout=900)
    assert first.returncode == code, err[-2000:]
    last = err.strip().splitlines()[-1]
    assert "saved at step" in last and "Traceback" not in err
    assert process.run(*args).returncode == 0
    same_bits(unbroken, workdir)


SLOW_EVALUATION = """
import sys, time
from hypelora_jax import cli
from hypelora_jax.train import scoring
put_batch = scoring.put_batch
def slow(*args):
    print("evaluating", flush=True)
    time.sleep(2)  # the whole evaluation: half a minute
    return put_batch(*args)
scoring.put_batch = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.soak  # in short: the test before it, between steps
@pytest.mark.fault("SIGTERM in an evaluation", "saved before; 75 after one batch")
def test_asked_to_stop_in_the_evaluation_of_an_epoch(unbroken, tmp_path):
    workdir = tmp_path / "run"
    args = ("train", *process.TINY, f"--workdir={workdir}")
    first = process.python("-c", SLOW_EVALUATION, *args)
    assert first.stdout.readline() == "evaluating\n"
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=900)
    assert first.returncode == 75, err[-2000:]
    assert "saved at step 6;" in err.strip().splitlines()[-1]
    assert [r["split"] for r in process.rows(workdir)] == ["train"] * 6
    assert process.run(*args).returncode == 0
    same_bits(unbroken, workdir)


def test_a_finished_run_says_so_and_another_config_is_refused(unbroken):
    args = ("train", *process.TINY, f"--workdir={unbroken}")
    again = process.run(*args)
    assert again.returncode == 0 and "finished" in again.stderr
    other = process.run(*args, "--config.optim.lr=0.5")
    assert other.returncode == 2
    assert "has another run: config.optim.lr" in other.stderr.splitlines()[-1]


LONG = (*process.TINY, "--config.optim.num_epochs=30")  # 180 steps, 90 saves


@pytest.mark.soak
@pytest.mark.fault("20 SIGKILLs at random moments", "the end has the same bits")
def test_twenty_kills_at_random_moments(tmp_path):
    rng = np.random.default_rng(0)
    unbroken, workdir = tmp_path / "unbroken", tmp_path / "run"
    assert process.run("train", *LONG, f"--workdir={unbroken}").returncode == 0
    args = ("train", *LONG, f"--workdir={workdir}")
    for _ in range(20):
        begun = [row["step"] for row in process.rows(workdir)]
        victim = process.start(*args)
        wanted = max(begun, default=0) + int(rng.integers(1, 4))
        process.wait_for_step(victim, workdir, wanted)
        time.sleep(rng.uniform(0, 0.2))  # two or three steps and a save
        victim.kill()
        victim.communicate()
        assert victim.returncode == -signal.SIGKILL, "it must not end before"
    assert process.run(*args).returncode == 0
    same_bits(unbroken, workdir, 180, 30)
