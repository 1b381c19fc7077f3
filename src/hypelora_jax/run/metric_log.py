"""What a run writes while it trains: metrics.jsonl, TensorBoard, a progress bar."""

import json
import sys
import time
from typing import Any

from etils import epath
from tqdm.auto import tqdm

from hypelora_jax import files

RATES = ("examples_per_s", "tokens_per_s", "time")  # not the same from run to run


class Journal:
    """Rows of metrics.jsonl and TensorBoard events of one run; a context manager.

    A run that goes on from step s first drops the rows after s, which it will write
    again: each step stands there once. So do the evaluations after s, if `judged` says
    that they were not finished. Where a store cannot append (gs://...), rows are kept
    and the file is written whole at each save; TensorBoard events are left out.
    """

    def __init__(
        self,
        workdir: epath.Path,
        resume_step: int,
        total: int,
        show: bool,
        judged: bool = True,
    ):
        self._path = workdir / "metrics.jsonl"
        self._rows = rows_until(self._path, resume_step)
        if not judged:
            self._rows = [
                row
                for row in self._rows
                if row["step"] < resume_step or row["split"] == "train"
            ]
        _write_whole(self._path, self._rows)
        self._file = self._board = None
        if appends(workdir):
            self._file = self._path.open("a")
            # here, since tensorboardX imports torch where that is installed: 5 s
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tb"), purge_step=resume_step + 1)
        self._bar = tqdm(
            total=total,
            initial=resume_step,
            desc=workdir.name,
            unit="step",
            disable=not show,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exc) -> None:
        self._bar.close()
        self.flush()
        if self._file:
            self._file.close()
            self._board.close()

    def advance(self) -> None:
        """One step done."""
        self._bar.update(1)

    def show(self, **values: str) -> None:
        """Text beside the progress bar."""
        self._bar.set_postfix(values, refresh=False)

    def write(self, row: dict[str, Any]) -> None:
        """One row; numbers also go to TensorBoard under split/name."""
        if self._file is None:
            self._rows.append(row)
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("step", "epoch"):
                self._board.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def flush(self) -> None:
        """Called at each save: rows reach a store that cannot append."""
        if self._file is None:
            _write_whole(self._path, self._rows)


class Muted:
    """The journal of a process that writes no text."""

    def __enter__(self) -> "Muted":
        return self

    def __exit__(self, *exc) -> None:
        pass

    def advance(self) -> None:
        """Nothing."""

    def show(self, **values: str) -> None:
        """Nothing."""

    def write(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""


def appends(workdir: epath.Path) -> bool:
    """Whether files there can be appended to: not in an object store."""
    return "://" not in str(workdir)


def rows_until(path: epath.Path, step: int) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl up to a step; a line cut short by a kill is dropped."""
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


def _write_whole(path: epath.Path, rows: list[dict[str, Any]]) -> None:
    files.write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


class Meter:
    """Examples and tokens per second since the last reading."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Start a new interval now."""
        self._start, self._examples, self._tokens = time.monotonic(), 0, 0

    def add(self, examples: int, tokens: int) -> None:
        """Count one batch; padding rows and padding tokens do not count."""
        self._examples += examples
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """Rates of the interval, which ends."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rates = {
            "examples_per_s": round(self._examples / seconds, 2),
            "tokens_per_s": round(self._tokens / seconds, 1),
        }
        self.reset()
        return rates


def summary(judged: dict[str, dict[str, Any]]) -> str:
    """The metrics of an epoch's splits that a reader follows, on one line."""
    names = ("nll", "mse", "accuracy", "mcc", "f1", "pearson", "ece")
    parts = []
    for split, values in judged.items():
        shown = [f"{name} {values[name]:.4f}" for name in names if name in values]
        parts += [f"{split} {' '.join(shown)}"] if values else []
    return "; ".join(parts)
