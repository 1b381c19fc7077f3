"""Writers of scalars next to metrics.jsonl: TensorBoard, Weights & Biases, Trackio.

A writer gets the config of a run, its scalars by step and its final metrics. To add
one, write a function that opens it and add a line to `WRITERS`. Only process 0 writes.
"""

import contextlib
import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import logging

from hypelora_jax import files
from hypelora_jax.errors import UserError
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes

Scalars = dict[str, float]  # "split/name" -> value
PROJECT = "hypelora_jax"  # where Weights & Biases and Trackio list a run
FINISH_SECONDS = 60  # that Weights & Biases may take for its last upload


class Writer(NamedTuple):
    """An open writer; `close` also gets whether the run came to its end."""

    write: Callable[[Scalars, int], None]  # scalars, step
    finish: Callable[[Scalars, int], None]  # final metrics, last step
    close: Callable[[bool], None]


class Kind(NamedTuple):
    """A kind of writer: the package it needs, its extra ("": none), and `open`."""

    package: str
    extra: str
    open: Callable[[Run, dict[str, Any], int], Writer]  # run, config, step it goes on


def check(names: Sequence[str]) -> None:
    """Check that the packages of the writers with these names are installed.

    Raises:
      UserError: a package is missing.
    """
    for name in names:
        kind = WRITERS[name]
        if kind.extra and importlib.util.find_spec(kind.package) is None:
            raise UserError(
                f"config.log.writers has {name}, but the package {kind.package} is not "
                f"installed; expected the extra: pip install -e '.[{kind.extra}]', or "
                f"log.writers without {name}"
            )


class Writers:
    """The writers of one run; a context manager that closes them.

    A writer that fails while training goes on is switched off with one warning.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        run: Run | None = None,
        config: dict[str, Any] | None = None,
    ):
        self._names, self._run, self._config = names, run, config or {}
        self._open: dict[str, Writer] = {}
        self._step = 0

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._each(lambda writer: writer.close(kind is None))
        self._open = {}

    def start(self, step: int) -> None:
        """Open the writers of a run that starts or goes on after `step`, in process 0.

        Raises:
          UserError: one of them cannot be opened.
        """
        self._step = step
        if self._run is None or not processes.is_main():
            return
        for name in self._names:
            try:
                with _output():
                    opened = WRITERS[name].open(self._run, self._config, step)
            except Exception as error:  # each package has classes of its own
                raise UserError(
                    f"config.log.writers: {name} cannot start ({_reason(error)}); "
                    "expected it set up (docs/tracking.md), or log.writers without it"
                ) from error
            self._open[name] = opened

    def write(self, scalars: Scalars, step: int) -> None:
        """Write scalars of a step."""
        self._step = step
        self._each(lambda writer: writer.write(scalars, step))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the final metrics, `metrics` of a run's summary.json."""
        final = {
            f"final/{split}/{name}": value
            for split, metrics in summary["metrics"].items()
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        self._each(lambda writer: writer.finish(final, self._step))

    def _each(self, call: Callable[[Writer], None]) -> None:
        for name, writer in list(self._open.items()):
            try:
                with _output():
                    call(writer)
            except Exception as error:  # a tracker must not end a training
                del self._open[name]
                logging.warning(
                    "log.writers: %s failed (%s) and is off from here on; "
                    "metrics.jsonl has all values",
                    name,
                    _reason(error),
                )


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Send what a package prints to stderr, because stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _identity(run: Run) -> str:
    """Return the id by which trackers know the run, drawn when it is first asked for.

    The id is in the run folder, so a run that goes on is the same run for them.
    """
    if not run.identity_file.exists():
        files.write_json(run.identity_file, {"id": uuid.uuid4().hex[:8]})
    return files.read_json(run.identity_file, "delete the file")["id"]


def _title(run: Run) -> str:
    """Return the name of the folder, for one of several seeds with its parent's."""
    parent = Run(run.path.parent)
    return f"{parent.name}-{run.name}" if parent.seeds_file.exists() else run.name


def _tensorboard(run: Run, config: dict[str, Any], step: int) -> Writer:
    """Open TensorBoard's events; a store that cannot append to files has none."""
    del config
    if not run.appends:
        return Writer(lambda scalars, step: None, lambda *_: None, lambda ended: None)
    # local: tensorboardX imports torch if that is installed, which takes 5 s
    from tensorboardX import SummaryWriter

    # events after the step are written again
    board = SummaryWriter(str(run.tensorboard_dir), purge_step=step + 1)

    def write(scalars: Scalars, step: int) -> None:
        for name, value in scalars.items():
            board.add_scalar(name, value, step)

    return Writer(write, lambda *_: None, lambda ended: board.close())


def _wandb(run: Run, config: dict[str, Any], step: int) -> Writer:
    """Open a run of Weights & Biases, or go on with it.

    Its files are in the folder `wandb` of the run, or in the cache if the run is in an
    object store. Its own environment variables (WANDB_MODE, WANDB_PROJECT, ...) count.
    """
    del step
    import wandb

    begun = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=os.environ.get("WANDB_NAME", _title(run)),
        id=_identity(run),
        resume="allow",
        config=config,
        dir=str(run.path if run.appends else files.root()),  # wandb adds its own name
        reinit="create_new",  # a run of the user's own, in a notebook, goes on
        settings=wandb.Settings(console="off", finish_timeout=FINISH_SECONDS),
    )
    # By its own count wandb drops steps that a resumed run writes again.
    begun.define_metric("*", step_metric="step")

    def write(scalars: Scalars, step: int) -> None:
        begun.log({**scalars, "step": step})

    def finish(scalars: Scalars, step: int) -> None:
        del step
        begun.summary.update(scalars)

    return Writer(write, finish, lambda ended: begun.finish(exit_code=int(not ended)))


def _trackio(run: Run, config: dict[str, Any], step: int) -> Writer:
    """Open a run of Trackio, or go on with it.

    Its database is in TRACKIO_DIR, by default in the cache of Hugging Face.
    """
    del step
    import trackio

    name = f"{_title(run)}-{_identity(run)}"  # Trackio knows runs by name
    begun = trackio.init(
        project=PROJECT, name=name, config=config, resume="allow", embed=False
    )
    return Writer(begun.log, begun.log, lambda ended: trackio.finish())


WRITERS = {
    "tensorboard": Kind("tensorboardX", "", _tensorboard),
    "wandb": Kind("wandb", "wandb", _wandb),
    "trackio": Kind("trackio", "trackio", _trackio),
}
