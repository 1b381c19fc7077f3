"""The metric log of a run, metrics.jsonl, with its writers and a progress bar."""

import json
import sys
from typing import IO, Any

from etils import epath
from tqdm.auto import tqdm

from hypelora_jax import files
from hypelora_jax.errors import UserError
from hypelora_jax.run.metric_writers import Writers
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes


class MetricLog:
    """Writes metrics.jsonl of one run and starts its writers; a context manager.

    A run that resumes from step s first drops the rows after s, because it will write
    them again. It also drops the evaluations at s if `judged` is False, that is, if
    they were not finished. If files cannot be appended to (gs://...), rows are kept in
    memory, and the file is written whole at each save. With several processes, only
    process 0 writes. The caller closes `writers`.
    """

    def __init__(
        self,
        run: Run,
        resume_step: int,
        total: int,
        show: bool,
        judged: bool = True,
        writers: Writers | None = None,
    ):
        self._writers = writers or Writers()
        self._writers.start(resume_step)  # first, because it may fail
        self._path, self._writes = run.metric_log, processes.is_main()
        self._rows = rows_until(self._path, resume_step) if self._writes else []
        if not judged:
            self._rows = [
                row
                for row in self._rows
                if row["step"] < resume_step or row["split"] == "train"
            ]
        self._file: IO[str] | None = None
        self.flush()
        if self._writes and run.appends:
            self._file = self._path.open("a")
        self._name = run.name
        self._bar = tqdm(
            total=total,
            initial=resume_step,
            desc=self._name,
            unit="step",
            disable=not (show and self._writes),
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
        self.flush()
        if self._file:
            self._file.close()

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        self._bar.update(1)

    def show(self, **values: str) -> None:
        """Show names and values at the end of the progress bar."""
        self._bar.set_postfix(values, refresh=False)

    def note(self, text: str) -> None:
        """Show a text behind the run's name in the progress bar; "" removes it."""
        self._bar.set_description(f"{self._name}, {text}" if text else self._name)

    def write(self, row: dict[str, Any]) -> None:
        """Write one row; its numbers also go to the writers, as split/name.

        Raises:
          UserError: a number is NaN or infinite.
        """
        line = _line(self._path, row)
        scalars = {
            f"{row['split']}/{name}": value
            for name, value in row.items()
            if isinstance(value, int | float) and name not in ("step", "epoch")
        }
        self._writers.write(scalars, row["step"])
        if self._file is None:
            self._rows.append(row)
            return
        self._file.write(line)
        self._file.flush()

    def flush(self) -> None:
        """Write the rows to a store that cannot append; called at each save."""
        if self._file is None and self._writes:
            text = "".join(_line(self._path, row) for row in self._rows)
            files.write_whole(self._path, text)


def _line(path: epath.Path, row: dict[str, Any]) -> str:
    try:
        return files.to_json(row) + "\n"
    except UserError as e:
        raise UserError(
            f"{path}, {row['split']} at step {row['step']}: {e}. Look at the labels "
            "of that split, lower config.optim.lr or raise optim.warmup"
        ) from None


def rows_until(path: epath.Path, step: int) -> list[dict[str, Any]]:
    """Read a metrics.jsonl up to a step; a line cut short by a kill is dropped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= step:
            rows.append(row)
    return rows


def read_rows(path: epath.Path) -> list[dict[str, Any]]:
    """Read all rows of a metrics.jsonl, except a last line that is still being written.

    Raises:
      UserError: an earlier line is not JSON.
    """
    lines = files.read_text(path).split("\n") if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise UserError(
                    f"{path}:{number}: the line is not JSON; remove it"
                ) from None
    return rows


def summary(judged: dict[str, dict[str, Any]]) -> str:
    """Return the main metrics of an epoch's splits, on one line."""
    names = "nll mse accuracy mcc f1 pearson ece delta_r2 held_out_delta_r2".split()
    parts = []
    for split, values in judged.items():
        shown = [f"{name} {values[name]:.4f}" for name in names if name in values]
        parts += [f"{split} {' '.join(shown)}"] if values else []
    return "; ".join(parts)
