"""A run folder's record: config.json, and what must not change when a run goes on."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import uuid
from pathlib import Path
from typing import Any

import jax
from etils import epath

import hypelora_jax
from hypelora_jax.config import settings as settings_lib
from hypelora_jax.config.settings import Settings
from hypelora_jax.data.tasks import Task
from hypelora_jax.errors import UserError
from hypelora_jax.train.session import Plan, Workbench, source_hash

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def absolute(workdir: str) -> epath.Path:
    """The folder as an absolute path, as checkpoints need it; gs://... as it is."""
    if "://" in workdir:
        return epath.Path(workdir)
    return epath.Path(Path(workdir).expanduser().absolute())


def open_workdir(workdir: str) -> epath.Path:
    """The folder, made if it is not there.

    Raises:
      UserError: it cannot be made or written.
    """
    folder = absolute(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write_probe-{uuid.uuid4().hex}"  # of this process alone
        probe.write_text("")
        probe.unlink()
    except OSError as e:
        raise UserError(
            f"cannot write workdir {workdir}: {e.strerror or e}; wanted a folder, or a "
            "place for one, that this user may write: choose another --workdir"
        ) from e
    return folder


def read_json(path: epath.Path) -> Any:
    """A JSON object of a file; UserError with its name where it is damaged."""
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
    except ValueError as e:
        raise UserError(
            f"{path} is damaged ({e}); wanted the JSON a run writes: restore the file "
            "or start in another --workdir"
        ) from e


def versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with."""
    out = {
        "python": platform.python_version(),
        "hypelora_jax": hypelora_jax.__version__,
    }
    return out | {name: importlib.metadata.version(name) for name in PACKAGES}


def _commit() -> str:
    """Commit of the checkout this package runs from; "" for an installed one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def located(settings: Settings) -> Settings:
    """The settings with absolute paths, so that they mean the same from any folder.

    Names (`minilm`, `random:PRESET`, a hub name) and gs://... stay as they are.
    """
    data, model = settings.data, settings.model
    names = ("dir", "train", "calibration", "validation", "test")
    paths = {n: str(absolute(p)) for n in names if (p := getattr(data, n))}
    if model.path and epath.Path(model.path).expanduser().is_dir():
        is_name = model.path == "minilm" or model.path.startswith("random:")
        if not is_name:
            model = dataclasses.replace(model, path=str(absolute(model.path)))
    data = dataclasses.replace(data, **paths)
    return dataclasses.replace(settings, data=data, model=model)


def as_dict(settings: Settings) -> dict[str, Any]:
    """Settings as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def record(bench: Workbench, plan: Plan) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "config": as_dict(bench.settings),
        "task": bench.task._asdict(),
        "model": {
            "name": bench.base.name,
            "revision": bench.base.revision,
            "sha256": source_hash(bench.base),
        },
        "total_steps": plan.total_steps,
        "buckets": list(plan.edges),
        "seed": bench.settings.seed,
        "versions": versions(),
        "device_kind": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "mesh": dict(bench.mesh.shape),
        "commit": _commit(),
    }


def saved_record(workdir: epath.Path) -> dict[str, Any] | None:
    """config.json of a run folder, None where there is none yet."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    record = read_json(path)
    if not {"config", "task", "model", "total_steps"} <= record.keys():
        raise UserError(
            f"{path} is no run's config.json (a model's, perhaps); wanted a folder of "
            "a run, or an empty one: choose another --workdir"
        )
    return record


def wanted_record(workdir: str) -> tuple[epath.Path, dict[str, Any]]:
    """(folder, config.json) of a run that must be there."""
    folder = absolute(workdir)
    record = saved_record(folder)
    if record is None:
        raise UserError(
            f"{workdir} holds no config.json; wanted the --workdir of a trained run "
            "(with num_seeds > 1, one of its seed_* folders)"
        )
    return folder, record


def settings_of(record: dict[str, Any]) -> Settings:
    """The settings a run was trained with."""
    return settings_lib.from_dict(record["config"])


def task_of(record: dict[str, Any]) -> Task:
    """The task a run was trained for, with the names of its classes."""
    task = dict(record["task"])
    return Task(**task | {n: tuple(task[n]) for n in ("labels", "metrics")})


def check_same(workdir: epath.Path, settings: Settings, record: dict[str, Any]) -> None:
    """Refuse to go on in a folder that holds another run.

    The mesh may differ: a checkpoint of any mesh is restored on any other.

    Raises:
      UserError: names the first field that differs.
    """
    # a field younger than the record has its default there
    mine, theirs = _flat(as_dict(settings)), _flat(as_dict(settings_of(record)))
    for name in sorted(mine.keys() | theirs.keys()):
        if name.startswith("mesh."):
            continue
        if mine.get(name) != theirs.get(name):
            raise UserError(
                f"{workdir} holds another run: config.{name} is {theirs.get(name)!r} "
                f"there and {mine.get(name)!r} here; choose another --workdir"
            )


def _flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out


def check_data(
    workdir: epath.Path, bench: Workbench, plan: Plan, record: dict[str, Any]
) -> None:
    """Refuse to go on with data other than the run began with."""
    now = {
        "task": json.loads(json.dumps(bench.task._asdict())),
        "total_steps": plan.total_steps,
        "buckets": list(plan.edges),
    }
    for name, value in now.items():
        if value != record[name]:
            raise UserError(
                f"the data has changed since {workdir} was begun ({name} is {value}, "
                f"then {record[name]}); restore it, or choose another --workdir"
            )


def check_weights(
    workdir: epath.Path, bench: Workbench, record: dict[str, Any]
) -> None:
    """Refuse to go on with a base model other than the one the run began with."""
    if (got := source_hash(bench.base)) != record["model"]["sha256"]:
        raise UserError(
            f"the weights of {bench.base.name} have changed since {workdir} was begun "
            f"(sha256 {got[:12]}, then {record['model']['sha256'][:12]}); restore "
            "them, or choose another --workdir"
        )
