"""What an exported folder says of itself: hypelora.json, and the model card."""

from etils import epath

from hypelora_jax import files
from hypelora_jax.calibration import calibrators
from hypelora_jax.evaluate.evaluation import Fitted
from hypelora_jax.report import model_card as cards
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run

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
    fitted = Run(run.workdir).calibrator_file.exists() or state.temperature != 1
    return state.temperature, "temperature" if fitted else ""


def write_record(part: epath.Path, run: Fitted, kind: str, calibrated: bool) -> None:
    """Config, task and calibrator of the run, as RECORD."""
    _, record = records.open_record(str(run.workdir))
    file, fitted = Run(run.workdir).calibrator_file, None
    if file.exists() and not calibrated:
        fitted = files.read_json(file)
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
    files.write_json(part / RECORD, note)


def write_card(
    part: epath.Path, name: str, run: Fitted, kind: str, calibrated: bool
) -> None:
    """README.md, and the reliability diagram of the run if there is one."""
    bench, held = run.bench, {}
    averaged = bench.settings.uncertainty.kind != "none"  # not what is exported
    own = Run(run.workdir)
    for split in [] if averaged else sorted(own.evaluated_splits()):
        metrics = files.read_json(own.metrics_file(split))
        if metrics.get("step") == run.step and "n" in metrics:
            held[split] = metrics
    diagram = own.diagram_file("validation")
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
    files.write_whole(part / "README.md", text)
