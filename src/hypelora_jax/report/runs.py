"""Finished runs as the report sees them: the files of their folders, read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax.calibration import calibrators
from hypelora_jax.calibration.metrics import scores
from hypelora_jax.errors import UserError
from hypelora_jax.run import arrays_file
from hypelora_jax.run.arrays_file import Arrays


class RunView(NamedTuple):
    """What a report shows of one run."""

    name: str
    config: dict[str, Any]
    metrics: dict[str, dict[str, Any]]  # split -> raw metrics, "calibrated": {...}
    arrays: Mapping[str, Arrays] = {}  # split -> predictions
    calibrator: Any = None  # state of the one fitted after training; None: not
    curve: Sequence[dict[str, Any]] = ()  # rows of metrics.jsonl
    best_step: int | None = None  # of the chosen checkpoint
    train_temperature: float = 1.0  # learned in training: divides the logits "before"


class Method(NamedTuple):
    """One row of a report: a run, or the seeds of one configuration."""

    name: str
    runs: tuple[RunView, ...]


class Examples(NamedTuple):
    """Labelled examples of a split, with the probabilities a run gives them."""

    before: np.ndarray  # (N, Y) float64, without the post-hoc calibrator
    after: np.ndarray | None  # (N, Y) float64, with it; None: there is none
    labels: np.ndarray  # (N,) classes
    ids: np.ndarray  # (N,)
    soft: np.ndarray | None = None  # (N, Y) shares of raters

    @property
    def final(self) -> np.ndarray:
        """Probabilities (N, Y) that `predict` gives."""
        return self.before if self.after is None else self.after


def load(workdir: epath.PathLike) -> Method:
    """The run of a folder, or all runs of its folders seed_0, seed_1, ...

    Raises:
      UserError: no run there, or a file that is not what it says.
    """
    folder = epath.Path(workdir)
    seeds = [] if (folder / "config.json").exists() else _seeds(folder)
    if not seeds:
        run = load_run(folder)
        return Method(run.name, (run,))
    return Method(folder.name, tuple(load_run(seed) for seed in seeds))


def load_all(workdirs: Sequence[epath.PathLike]) -> list[Method]:
    """Runs of several folders; folders of the same name get their parents' names too.

    Raises:
      UserError: as `load`, or a folder given twice.
    """
    paths = [epath.Path(workdir) for workdir in workdirs]
    if len({path.parts for path in paths}) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"{twice} is given twice; wanted each --workdir once")
    methods = [load(path) for path in paths]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return [m._replace(name=n) for m, n in zip(methods, names, strict=True)]


def load_run(workdir: epath.PathLike) -> RunView:
    """View of a run folder: config.json, and what there is of the other files.

    Raises:
      UserError: no folder, no config.json in it, or a file that is not what it says.
    """
    folder = epath.Path(workdir)
    if not (folder / "config.json").exists():
        seeds = bool(_seeds(folder))
        way_out = (
            "give one of its seed_* folders" if seeds else "train a run there first"
        )
        raise UserError(
            f"{folder} holds no config.json; wanted a run folder: {way_out}"
        )
    config, curve = _json(folder / "config.json"), _curve(folder / "metrics.jsonl")
    state = arrays_file.calibrator(folder)
    files = sorted((folder / "eval").glob("*/metrics.json"), key=_validation_first)
    held = {file.parent.name: _json(file) for file in files}
    return RunView(
        name=folder.name,
        config=config,
        metrics={s: _metrics(m, state is not None) for s, m in held.items()},
        arrays=_arrays(folder),
        calibrator=state,
        curve=curve,
        best_step=_best_step(config, curve, held),
        train_temperature=_train_temperature(held, state is not None),
    )


def seed_of(run: RunView) -> int | None:
    """The seed a run was trained with, where its config says so."""
    return settings_of(run).get("seed")


def settings_of(run: RunView) -> dict[str, Any]:
    """The configuration of a run; config.json holds it with facts of the machine."""
    return run.config.get("config", run.config)


def examples(run: RunView, split: str) -> Examples | None:
    """Labelled examples of a split of a classification run; None where it has none."""
    if (held := run.arrays.get(split)) is None or held.logits.shape[1] < 2:
        return None
    if held.labels.ndim != 1:  # soft labels: no one class to be right about
        return None
    keep = held.labels >= 0
    if not keep.any():
        return None
    ids = np.arange(len(keep)) if held.ids is None else held.ids
    logits = held.logits[keep].astype(np.float64)
    before = calibrators.softmax(logits, run.train_temperature)
    after = None
    if changes(run.calibrator, run.train_temperature):
        after = np.asarray(calibrators.apply(run.calibrator, logits), np.float64)
    soft = None if held.soft is None else held.soft[keep]
    return Examples(before, after, held.labels[keep].astype(int), ids[keep], soft)


def changes(calibrator: Any, train_temperature: float) -> bool:
    """Whether a fitted state changes what the training temperature gives."""
    if calibrator is None or isinstance(calibrator, calibrators.Identity):
        return False
    return getattr(calibrator, "temperature", None) != train_temperature


def _seeds(folder: epath.Path) -> list[epath.Path]:
    """Folders seed_0, seed_1, ... in the order of their numbers."""
    held = [p for p in folder.glob("seed_*") if p.name.removeprefix("seed_").isdigit()]
    return sorted(held, key=lambda path: int(path.name.removeprefix("seed_")))


def _json(file: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except ValueError as e:
        raise UserError(f"{file} is not JSON ({e}); was it cut short?") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} holds no JSON object; wanted what a run writes")
    return value


def _curve(file: epath.Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line still being written is left out."""
    lines = file.read_text().split("\n") if file.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{file}:{number}: no JSON; remove the line") from None
    return rows


def _metrics(held: dict[str, Any], fitted: bool) -> dict[str, Any]:
    """Raw metrics with the calibrated ones below; the file has it reversed."""
    raw = held.get("uncalibrated", {})
    calibrated = {k: v for k, v in held.items() if k != "uncalibrated"}
    if not fitted or not raw:
        return {**calibrated, **raw}
    # task scores do not depend on the temperature and may stand once only
    return {**calibrated, **raw, "calibrated": calibrated}


def _arrays(folder: epath.Path) -> dict[str, Arrays]:
    files = (folder / "eval").glob("*/predictions.npz")
    files = sorted(files, key=_validation_first)
    return {file.parent.name: arrays_file.arrays(file) for file in files}


def _validation_first(file: epath.Path) -> tuple[bool, str]:
    return file.parent.name != "validation", file.parent.name


def _train_temperature(held: dict[str, Any], fitted: bool) -> float:
    """Temperature of the probabilities without the fitted one, where a file says it."""
    for metrics in held.values():
        raw = metrics.get("uncalibrated", {}) if fitted else metrics
        if "temperature" in raw:
            return float(raw["temperature"])
    return 1.0


def _best_step(
    config: dict[str, Any], curve: list[dict[str, Any]], held: dict[str, Any]
) -> int | None:
    """Step that was evaluated; else that of the lowest selection NLL, or the last."""
    if said := [metrics["step"] for metrics in held.values() if "step" in metrics]:
        return said[0]
    select_on = config.get("config", config).get("select_on", "calibration")
    epochs = [row for row in curve if row.get("split") != "train" and "nll" in row]
    chosen = [row for row in epochs if row["split"] == select_on] or [
        row for row in epochs if row["split"] == "validation"
    ]
    if not chosen:
        return None
    if select_on == "last":
        return chosen[-1]["step"]
    if select_on == "validation_score":
        return max(chosen, key=lambda row: row[scores.main(row)])["step"]
    return min(chosen, key=lambda row: row["nll"])["step"]
