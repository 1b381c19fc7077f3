"""The record of a run, config.json, and what must not change when a run resumes."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh

import hypelora_jax
from hypelora_jax import files
from hypelora_jax.config import ranges
from hypelora_jax.config import settings as settings_lib
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.interop.base import Base, weights_sha256
from hypelora_jax.run.paths import Run

# Fields newer than some records, and the values that say what training did before. New
# runs have other values.
NEWER = {
    "optim.trunk_lr": 0.0,
    "model.masks": "threefry",
    "model.attention": "xla",
    "condition.whiten": False,
}
DIGESTS = "data_sha256"  # in config.json: SHA-256 of the examples of each split
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the packages it computes with."""
    out = {
        "python": platform.python_version(),
        "hypelora_jax": hypelora_jax.__version__,
    }
    return out | {name: importlib.metadata.version(name) for name in PACKAGES}


def _commit() -> str:
    """Return the commit of the git checkout, or "" if the package is installed."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return ""
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def located(settings: Settings) -> Settings:
    """Make paths in the settings absolute, so that they mean the same in any folder.

    Names (`minilm`, `random:PRESET`, a hub name) and gs://... stay as they are.
    """
    model, data = _located(settings.model), _located(settings.data)
    condition, tasks = _located(settings.condition), _located(settings.tasks)
    about = {"model": model, "data": data, "condition": condition, "tasks": tasks}
    return dataclasses.replace(settings, ckpt=_located(settings.ckpt), **about)


def _located(section: Any) -> Any:
    """Make the paths that are given in a section absolute."""
    paths: dict[str, Any] = {}
    for name, takes in ranges.paths(type(section)).items():
        path = getattr(section, name)
        is_name = path == "minilm" or path.startswith("random:")
        if takes == files.MODEL and (is_name or not epath.Path(path).is_dir()):
            continue
        if path:
            paths[name] = str(files.absolute(path))
    return dataclasses.replace(section, **paths)


def as_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain JSON values."""
    return json.loads(files.to_json(dataclasses.asdict(settings)))


def record(
    settings: Settings,
    task: Task,
    base: Base,
    mesh: Mesh,
    edges: Sequence[int],
    total_steps: int,
) -> dict[str, Any]:
    """Return the contents of config.json.

    Args:
      settings: all settings, with absolute paths.
      task: the task, with the names of its classes.
      base: the base model.
      mesh: the device mesh.
      edges: lengths T of the buckets, in tokens.
      total_steps: optimizer steps of the whole run.
    """
    return {
        "config": as_dict(settings),
        "task": task._asdict(),
        "model": {
            "name": base.name,
            "revision": base.revision,
            "sha256": weights_sha256(base),
        },
        "total_steps": total_steps,
        "buckets": list(edges),
        "seed": settings.seed,
        "versions": versions(),
        "device_kind": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "commit": _commit(),
    }


def read_record(run: Run) -> dict[str, Any] | None:
    """Read config.json of a run folder; return None if there is none yet.

    Raises:
      UserError: the file is damaged, or it does not belong to a run.
    """
    path = run.config_file
    if not path.exists():
        return None
    record = files.read_json(path, "restore the file or start in another workdir")
    if not {"config", "task", "model", "total_steps"} <= record.keys():
        raise UserError(
            f"{path} is not the config.json of a run (perhaps of a model); expected a "
            "folder of a run, or an empty one. Choose another workdir"
        )
    return record


def open_record(workdir: str) -> tuple[Run, dict[str, Any]]:
    """Return (run, config.json) of a folder that must contain a run.

    Raises:
      UserError: the folder does not contain a run.
    """
    run = Run.open(workdir)
    record = read_record(run)
    if record is None:
        raise UserError(
            f"{workdir} has no config.json; expected the folder of a trained run "
            "(with num_seeds > 1, one of its seed_* folders)"
        )
    return run, record


def settings_of(record: dict[str, Any]) -> Settings:
    """Return the settings that a run was trained with.

    Raises:
      UserError: it was trained with a `condition.sign` that read other vectors.
    """
    config, known = dict(record["config"]), flat(record["config"])
    if known.get("condition.sign") and "condition.whiten" not in known:
        raise UserError(
            "the run was trained with condition.sign by an older version, which read "
            "other vectors of descriptions; expected a run of this version: train anew"
        )
    for field, before in NEWER.items():
        if field not in known:
            section, _, name = field.rpartition(".")
            config[section] = {**config.get(section, {}), name: before}
    return settings_lib.from_dict(config)


def task_of(record: dict[str, Any]) -> Task:
    """Return the task that a run was trained for, with the names of its classes."""
    lists = {n: tuple(x) for n, x in record["task"].items() if isinstance(x, list)}
    return Task(**{**record["task"], **lists})


def _as_begun(settings: Settings, record: dict[str, Any]) -> Settings:
    """Return the settings with fields of NEWER that the record lacks as they were."""
    recorded, theirs = flat(record["config"]), as_dict(settings_of(record))
    mine = as_dict(settings)
    for field in NEWER:
        section, _, name = field.rpartition(".")
        got, kept = mine[section][name], theirs[section][name]
        if field not in recorded and got != kept:
            logging.info("config.%s is %s, as when the run was begun", field, kept)
            mine[section][name] = kept
    return settings_lib.from_dict(mine)


def check_same(
    workdir: epath.PathLike, settings: Settings, record: dict[str, Any]
) -> Settings:
    """Return the settings that the run in a folder goes on with, if they are the same.

    The mesh may differ, because a checkpoint of any mesh can be restored on any other.
    A field of NEWER that the record lacks keeps its old meaning.

    Raises:
      UserError: a field differs; the message names the first one.
    """
    settings = _as_begun(settings, record)
    # a field that is newer than the record gets its default value
    mine, theirs = flat(as_dict(settings)), flat(as_dict(settings_of(record)))
    for name in sorted(mine.keys() | theirs.keys()):
        if name.startswith("mesh."):
            continue
        if mine.get(name) != theirs.get(name):
            raise UserError(
                f"{workdir} has another run: config.{name} is {theirs.get(name)!r} "
                f"there and {mine.get(name)!r} here; give "
                f"{theirs.get(name)!r} to continue that run, or choose another workdir"
            )
    return settings


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map dotted paths to the leaves of nested dicts; an empty dict is a leaf."""
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def check_data(
    workdir: epath.PathLike, now: dict[str, Any], record: dict[str, Any]
) -> None:
    """Check that the data are those that the run began with.

    Args:
      workdir: folder of the run.
      now: what a new record would say about the data: the task, the buckets, the number
        of steps, the digests of the splits, which older records lack, and the vectors
        that examples are conditioned on, if any.
      record: record of the run.

    Raises:
      UserError: one of these differs from the record.
    """
    then = {**record, "task": task_of(record)}
    if now.get("condition") != then.get("condition"):
        raise UserError(
            "the vectors that examples are conditioned on have changed since "
            f"{workdir} was started; restore them, or choose another workdir"
        )
    if now.get("tasks") != then.get("tasks"):
        raise UserError(
            f"the tasks have changed since {workdir} was started (its tasks.json has "
            "those of then); restore config.tasks.file, or choose another workdir"
        )
    for name in now:
        if name != DIGESTS and now.get(name) != then.get(name):
            raise UserError(
                f"the data has changed since {workdir} was started ({name} was "
                f"{then.get(name)} and is now {now.get(name)}); restore it, or choose "
                "another workdir"
            )
    if changed := changed_splits(now.get(DIGESTS, {}), record):
        raise UserError(
            f"the data has changed since {workdir} was started (other texts or labels "
            f"in {', '.join(changed)}); restore it, or choose another --workdir"
        )


def changed_splits(digests: Mapping[str, str], record: dict[str, Any]) -> list[str]:
    """Return the names of the splits whose examples are not those of the record.

    A record that is older than the digests names none.
    """
    then = record.get(DIGESTS, {})
    return [name for name in digests if then.get(name, digests[name]) != digests[name]]


def check_weights(workdir: epath.PathLike, base: Base, record: dict[str, Any]) -> None:
    """Check that the base model is the one that the run began with.

    Raises:
      UserError: the weight files differ.
    """
    if (got := weights_sha256(base)) != record["model"]["sha256"]:
        raise UserError(
            f"the weights of {base.name} have changed since {workdir} was started "
            f"(their sha256 is {got[:12]} now and was "
            f"{record['model']['sha256'][:12]} then); restore them, or choose another "
            "workdir"
        )
