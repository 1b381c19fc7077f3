"""Reads and writes the calibrator of a run, calibrator.json."""

from typing import Any

from hypelora_jax import files
from hypelora_jax.calibration import calibrators
from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run


def read(run: Run) -> Any | None:
    """Read the calibrator fitted after training; return None if nothing was fitted.

    Raises:
      UserError: calibrator.json is not what a fit writes.
    """
    file = run.calibrator_file
    if not file.exists():
        return None
    way_out = (
        "remove the file and fit a calibrator again: hypelora calibrate "
        f"--workdir={run.path}"
    )
    text = files.read_text(file, way_out)
    try:
        return calibrators.from_json(text)
    except UserError as e:
        found = str(e).removesuffix("; fit it again")
        raise UserError(f"{file}: {found}; {way_out}") from None


def write(run: Run, state: Any | None) -> None:
    """Write calibrator.json; without a state, remove it."""
    if state is None:
        run.calibrator_file.unlink(missing_ok=True)
        return
    files.write_whole(run.calibrator_file, calibrators.to_json(state) + "\n")
