"""What an exported folder says of itself: hypelora.json, and the model card."""

import json

from etils import epath

from hypelora_jax import files as files_lib
from hypelora_jax.calibration import calibrators
from hypelora_jax.evaluate.evaluation import Fitted
from hypelora_jax.report import model_card as cards
from hypelora_jax.run import records

RECORD = "hypelora.json"  # what `import` reads to make a whole run again


def temperature_of(run: Fitted) -> tuple[float | None, str]:
    """(what divides the logits, kind of calibrator); None: it is no temperature.

    The kind is "" where nothing was fitted or learned.
    """
    state = run.calibrator
    if isinstance(state, calibrators.Identity):
        return 1.0, ""
    if not isinstance(state, calibrators.Temperature):
        return None, calibrators.kind(state)
    fitted = (run.workdir / "calibrator.json").exists() or state.temperature != 1
    return state.temperature, "temperature" if fitted else ""


def write_record(part: epath.Path, run: Fitted, kind: str, calibrated: bool) -> None:
    """Config, task and calibrator of the run, as RECORD."""
    record = records.saved_record(run.workdir)
    file, fitted = run.workdir / "calibrator.json", None
    if file.exists() and not calibrated:
        fitted = json.loads(file.read_text())
    elif not calibrated and run.uncalibrated != 1:
        fitted = {"kind": "temperature", "temperature": run.uncalibrated}
    note = {
        "format": kind,
        "calibrated": calibrated,
        "calibrator": fitted,
        "step": run.step,
        "alpha": float(run.alpha),
        **{n: record[n] for n in ("config", "task", "model", "versions")},
    }
    files_lib.write_json(part / RECORD, note)


def write_card(
    part: epath.Path, name: str, run: Fitted, kind: str, calibrated: bool
) -> None:
    """README.md, and the reliability diagram of the run if there is one."""
    bench, held = run.bench, {}
    averaged = bench.settings.uncertainty.kind != "none"  # not what is exported
    files = [] if averaged else (run.workdir / "eval").glob("*/metrics.json")
    for file in sorted(files):
        metrics = records.read_json(file)
        if metrics.get("step") == run.step and "n" in metrics:
            held[file.parent.name] = metrics
    diagram = run.workdir / "report" / "reliability_validation.png"
    if has := "validation" in held and diagram.exists():
        (part / cards.DIAGRAM).write_bytes(diagram.read_bytes())
    divisor, fitted = temperature_of(run)
    base = f"{name}/base" if bench.base.folder is None else bench.base.name
    text = cards.markdown(
        cards.Card(
            name=name,
            kind=kind,
            method=bench.settings.method,
            base=base,
            revision=bench.base.revision,
            task=bench.task.name,
            labels=bench.task.labels,
            pair=bench.task.pair,
            max_length=bench.settings.data.max_length,
            temperature=1.0 if calibrated else divisor,
            calibrated=calibrated,
            fitted=divisor if fitted == "temperature" else None,
            calibrator=fitted,
            metrics=held,
            has_diagram=has,
        )
    )
    files_lib.write_whole(part / "README.md", text)
