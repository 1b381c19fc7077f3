"""Checkpoints as files: what is kept, what counts as complete, what damage does."""

import json
import random
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from hypelora_jax.data.iterator import STATE, ReadAhead, TrainIterator
from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run
from hypelora_jax.train.checkpoint import manifest, selection
from hypelora_jax.train.checkpoint.checkpoints import Checkpoints
from hypelora_jax.train.checkpoint.selection import Selection
from hypelora_jax.train.state import TrainState

PROGRESS = ("best", "bad_epochs")


def data_at(step: int):
    """A data iterator that has given `step` batches."""
    iterator = TrainIterator(ReadAhead(100, lambda i: i))
    for _ in range(step):
        next(iterator)
    return iterator


def state_at(step: int) -> TrainState:
    """A state whose every leaf tells its step."""
    params = {"hyper": {"w": jnp.arange(64.0).reshape(8, 8) + 1000 * step}}
    moments = jax.tree.map(lambda x: x + step, optax.adam(1e-3).init(params))
    number = jnp.asarray(step, jnp.int32)
    return TrainState(number, params, moments, jax.random.key(step))


def save(saved: Checkpoints, step: int) -> None:
    frozen = {"hyper_a": jnp.full((3,), 7.0 * step)}
    progress = {"best": 0.5 * step, "bad_epochs": step}
    saved.save(state_at(step), frozen, data_at(step), progress)


def bits(tree) -> list[bytes]:
    def raw(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x).tobytes()

    return [raw(x) for x in jax.tree.leaves(tree)]


def restored(saved: Checkpoints) -> int:
    """Step that a run would go on from, every value of it compared."""
    step = saved.newest()
    data = data_at(0)
    frozen = {"hyper_a": jnp.zeros(3)}
    got = saved.restore(step, state_at(0), frozen, PROGRESS, data)
    assert bits(got.state) == bits(state_at(step))
    assert bits(got.frozen) == bits({"hyper_a": jnp.full((3,), 7.0 * step)})
    assert got.progress == {"best": 0.5 * step, "bad_epochs": step}
    assert next(data) == step
    return step


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with the checkpoints 1 and 2; 2 ends an epoch."""
    workdir = epath.Path(tmp_path_factory.mktemp("sound"))
    with Checkpoints(Run(workdir)) as saved:
        save(saved, 1)
        save(saved, 2)
        saved.select(2, Selection(0.25, 0.25))
    return workdir


@pytest.fixture
def workdir(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    return epath.Path(tmp_path / "run")


def files_of(workdir, step):
    folder = Path(workdir / "checkpoints" / str(step))
    found = sorted(p for p in folder.rglob("*") if not p.is_dir())
    assert len(found) > 15
    return found


def after_damage(workdir, path, data: bytes) -> int:
    """Step restored from a folder in which one file holds other bytes; mended after."""
    copy = workdir.parent / "copy"
    shutil.copytree(workdir, copy)
    (copy / path.relative_to(workdir)).write_bytes(data)
    with Checkpoints(Run(copy)) as saved:
        step = restored(saved)
    shutil.rmtree(copy)
    return step


HARMLESS = {"commit_success.txt"}  # of a step's own folder: it carries no value


def test_undamaged(workdir):
    with Checkpoints(Run(workdir)) as saved:
        assert restored(saved) == 2 and saved.best() == 2
        assert saved.selection(2) == Selection(0.25, 0.25)
        assert saved.selection(1) is None


@pytest.mark.fault("a file of a checkpoint truncated", "named, the one before is used")
def test_every_file_truncated(workdir, caplog):
    top = Path(workdir / "checkpoints" / "2")
    for path in files_of(workdir, 2):
        caplog.clear()
        size = path.stat().st_size
        step = after_damage(workdir, path, path.read_bytes()[: size // 2])
        harmless = path.parent == top and path.name in HARMLESS
        assert step == (2 if harmless else 1), path
        assert harmless or path.name in caplog.text and "step 1 is used" in caplog.text


def flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


@pytest.mark.fault("a bit of a checkpoint flipped", "no wrong value is ever restored")
@pytest.mark.parametrize(
    "positions", [1, pytest.param(10, marks=pytest.mark.soak)], ids=str
)
def test_bits_flipped_in_every_file(workdir, positions):
    rng = random.Random(positions)
    used = []
    for path in files_of(workdir, 2):
        for _ in range(positions):
            used.append(after_damage(workdir, path, flipped(path.read_bytes(), rng)))
    assert used.count(1) > 0.9 * len(used)  # all but those that change nothing


@pytest.mark.fault("a file of a checkpoint missing", "named, the one before is used")
def test_missing_files(workdir, caplog):
    for name in ("manifest.json", "state/manifest.ocdbt"):
        caplog.clear()
        (workdir / "checkpoints" / "2" / name).unlink()
        with Checkpoints(Run(workdir)) as saved:
            assert restored(saved) == 1
        save_again(workdir)


def save_again(workdir):
    with Checkpoints(Run(workdir)) as saved:
        save(saved, 2)


@pytest.mark.fault("every checkpoint damaged", "one line names them all; exit 2")
def test_all_damaged(workdir):
    for step in (1, 2):
        (workdir / "checkpoints" / str(step) / "data" / STATE).write_text("9")
    with Checkpoints(Run(workdir)) as saved:
        for find in (saved.newest, saved.best):
            with pytest.raises(UserError, match="every .*/2: data/.*/1: data/"):
                find()


@pytest.mark.fault("a save cut short", "never taken for a checkpoint; cleared away")
def test_an_unfinished_save_is_no_checkpoint(workdir):
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    shutil.copytree(folder / "2", folder / "4")
    (folder / "4" / "manifest.json").unlink()
    with Checkpoints(Run(workdir)) as reader:
        assert reader.latest() == 2 and reader.best() == 2
    assert (folder / "3.orbax-checkpoint-tmp").exists(), "a reader deletes nothing"
    with Checkpoints(Run(workdir)) as saved:
        assert restored(saved) == 2
        save(saved, 3)
        saved.wait()
        assert restored(saved) == 3
    assert selection.steps(folder) == [2, 3]
    assert not (folder / "3.orbax-checkpoint-tmp").exists()


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    losses = {1: 0.9, 2: 0.3, 3: 0.5, 4: 0.3, 5: 0.8, 6: 0.7}
    with Checkpoints(Run.open(tmp_path), keep=2) as saved:
        for step, loss in losses.items():
            save(saved, step)
            saved.select(step, Selection(loss, loss))
        saved.wait()
        assert saved.best() == 4, "the latest among equals"
        assert restored(saved) == 6
    assert selection.complete(saved.directory) == [4, 5, 6]


def test_a_save_in_the_background_keeps_the_values_of_its_step(tmp_path):
    """The steps after it donate the state that is being written."""
    bump = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    params = bump({"w": jnp.zeros((1024, 1024))})
    with Checkpoints(Run.open(tmp_path)) as saved:
        state = state_at(5)
        state = TrainState(state.step, params, state.opt_state, state.key)
        saved.save(state, {}, data_at(5), {"best": 1.0})
        for _ in range(5):
            params = bump(params)
        like = TrainState(state.step, params, state.opt_state, state.key)
        saved.wait()
        got = saved.restore(5, like, {})
    assert np.all(np.asarray(got.state.params["w"]) == 1)
    assert np.all(np.asarray(params["w"]) == 6)


def test_the_manifest_waits_for_what_orbax_writes_in_its_own_thread(tmp_path):
    folder, early = epath.Path(tmp_path), {"init_timestamp_nsecs": 1}
    late = json.dumps(early | {manifest.HANDLERS: {"state": "handler"}})
    path = folder / manifest.STAMPED
    path.write_text(json.dumps(early))
    timer = threading.Timer(0.3, path.write_text, [late])
    timer.start()
    manifest.write(folder)
    timer.join()
    assert manifest.fault(folder) is None
    path.write_text(late.replace("handler", "handles"))
    assert "SHA-256 differs" in manifest.fault(folder)
