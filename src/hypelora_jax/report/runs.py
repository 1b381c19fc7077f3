"""A finished run as the report sees it: the files of its folder, read."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax.calibration import calibrators
from hypelora_jax.report import predictions
from hypelora_jax.types import UserError


class RunView(NamedTuple):
    """What a report shows of one run."""

    name: str
    config: dict[str, Any]
    metrics: dict[str, dict[str, Any]]  # split -> raw metrics, "calibrated": {...}
    logits: np.ndarray | None = None  # (N, Y) raw, of the split shown in diagrams
    labels: np.ndarray | None = None  # (N,)
    temperature: float | None = None  # fitted after training; None: not
    curve: Sequence[dict[str, Any]] = ()  # rows of metrics.jsonl
    best_step: int | None = None  # of the chosen checkpoint
    train_temperature: float = 1.0  # learned in training: divides the logits "before"


def load_run(workdir: epath.PathLike) -> RunView:
    """View of a run folder: config.json, and what there is of the other files.

    Raises:
      UserError: no folder, no config.json in it, or a file that is not what it says.
    """
    folder = epath.Path(workdir)
    if not (folder / "config.json").exists():
        seeds = (folder / "seed_0").exists()
        way_out = (
            "give one of its seed_* folders" if seeds else "train a run there first"
        )
        raise UserError(
            f"{folder} holds no config.json; wanted a run folder: {way_out}"
        )
    config, curve = _json(folder / "config.json"), _curve(folder / "metrics.jsonl")
    fitted = _fitted(folder)
    files = sorted((folder / "eval").glob("*/metrics.json"), key=_validation_first)
    held = {file.parent.name: _json(file) for file in files}
    logits, labels = _arrays(folder)
    return RunView(
        name=folder.name,
        config=config,
        metrics={s: _metrics(m, fitted is not None) for s, m in held.items()},
        logits=logits,
        labels=labels,
        temperature=fitted,
        curve=curve,
        best_step=_best_step(config, curve, held),
        train_temperature=_train_temperature(held, fitted is not None),
    )


def labelled(run: RunView) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits (N, Y) and classes (N,) of a classification run, else None."""
    if run.logits is None or run.labels is None or run.logits.shape[1] < 2:
        return None
    if run.labels.ndim != 1:  # soft labels: no one class to be right about
        return None
    keep = run.labels >= 0
    return (run.logits[keep], run.labels[keep].astype(int)) if keep.any() else None


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


def _arrays(folder: epath.Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    files = sorted((folder / "eval").glob("*/predictions.npz"), key=_validation_first)
    if not files:
        return None, None
    held = predictions.arrays(files[0])
    if missing := {"logits", "labels"} - set(held):
        raise UserError(f"{files[0]} has no {min(missing)}; run evaluate again")
    return held["logits"], held["labels"]


def _validation_first(file: epath.Path) -> tuple[bool, str]:
    return file.parent.name != "validation", file.parent.name


def _fitted(folder: epath.Path) -> float | None:
    file = folder / "calibrator.json"
    if not file.exists():
        return None
    return getattr(calibrators.from_json(file.read_text()), "temperature", None)


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
    return min(chosen, key=lambda row: row["nll"])["step"]
