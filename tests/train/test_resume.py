"""A run that is killed or asked to stop ends with the same bits as one that is not."""

import signal

import jax
import numpy as np
import process
import pytest
from etils import epath

from hypelora_jax import folder
from hypelora_jax.data.pipeline import train_iterator
from hypelora_jax.train import setup
from hypelora_jax.train.checkpoints import Checkpoints
from hypelora_jax.train.journal import RATES

STEPS = 12  # of process.TINY


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    done = process.run("train", *process.TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir


def final_state(workdir):
    """All that the last checkpoint holds, as arrays; the data iterator's state."""
    workdir = epath.Path(workdir)
    settings = folder.settings_of(folder.saved_record(workdir))
    corpus = setup.load_corpus(settings)
    bench = setup.workbench(settings, corpus.task)
    plan = setup.plan(bench, corpus)
    state, _, _ = setup.start(bench, plan.total_steps)
    data, keys = plan.datasets["train"], setup.keys(settings)
    iterator = train_iterator(data, plan.edges, 16, keys.data, 2)
    own = setup.own_frozen(bench.frozen)
    with Checkpoints(workdir) as saved:
        got = saved.restore(STEPS, state, own, ("best", "bad_epochs"), iterator)
    key = jax.random.key_data(got.state.key)
    arrays = got.state.step, got.state.params, got.state.opt_state, key, got.frozen
    return arrays, got.progress, iterator.get_state()


def same_bits(one, two):
    (a, *rest), (b, *other_rest) = final_state(one), final_state(two)
    assert rest == other_rest
    leaves = jax.tree.leaves_with_path(a)
    assert len(leaves) > 10
    for (path, x), y in zip(leaves, jax.tree.leaves(b), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
    lasting = [
        [{k: v for k, v in row.items() if k not in RATES} for row in process.rows(d)]
        for d in (one, two)
    ]
    assert lasting[0] == lasting[1]
    steps = [row["step"] for row in lasting[0] if row["split"] == "train"]
    assert steps == list(range(1, STEPS + 1)), "each step once"


@pytest.mark.parametrize("step", [3, 8])
def test_killed_and_started_again(unbroken, tmp_path, step):
    workdir = tmp_path / "run"
    args = ("train", *process.TINY, f"--workdir={workdir}")
    first = process.start(*args)
    process.wait_for_step(first, workdir, step)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    second = process.run(*args)
    assert second.returncode == 0, second.stderr[-2000:]
    same_bits(unbroken, workdir)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_asked_to_stop_saves_and_goes_on(unbroken, tmp_path, number, code):
    workdir = tmp_path / "run"
    args = ("train", *process.TINY, f"--workdir={workdir}")
    first = process.start(*args)
    process.wait_for_step(first, workdir, 3)
    first.send_signal(number)
    _, err = first.communicate(timeout=60)
    assert first.returncode == code, err[-2000:]
    last = err.strip().splitlines()[-1]
    assert "saved at step" in last and "Traceback" not in err
    assert process.run(*args).returncode == 0
    same_bits(unbroken, workdir)


def test_a_finished_run_says_so_and_another_config_is_refused(unbroken):
    args = ("train", *process.TINY, f"--workdir={unbroken}")
    again = process.run(*args)
    assert again.returncode == 0 and "finished" in again.stderr
    other = process.run(*args, "--config.optim.lr=0.5")
    assert other.returncode == 2
    assert "holds another run: config.optim.lr" in other.stderr.splitlines()[-1]


@pytest.mark.soak
def test_twenty_kills_at_random_moments(unbroken, tmp_path):
    rng = np.random.default_rng(0)
    workdir = tmp_path / "run"
    args = ("train", *process.TINY, f"--workdir={workdir}")
    for _ in range(20):
        victim = process.start(*args)
        process.wait_for_step(victim, workdir, int(rng.integers(1, STEPS)))
        victim.kill()
        victim.communicate()
    assert process.run(*args).returncode == 0
    same_bits(unbroken, workdir)
