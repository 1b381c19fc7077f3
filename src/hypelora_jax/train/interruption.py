"""Signals that ask a run to stop; it stops between steps, never during a save."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

from hypelora_jax.errors import Preempted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Asked(Exception):
    """Raised between two steps, or two batches of an evaluation, to stop the run."""


class StopRequest:
    """Catches SIGINT and SIGTERM; a context manager, which may be nested.

    The first signal is remembered: the loop finishes the current step, saves its state
    and stops. A second Ctrl-C stops at once, and the run resumes from the last
    checkpoint.

    Args:
      at_once: stop at once at the first signal, for use when there is nothing to save.
    """

    def __init__(self, at_once: bool = False):
        self.signal: int | None = None
        self._at_once = at_once
        self._before: dict[int, Any] = {}  # handlers by signal

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._remember)
            except ValueError:  # not the main thread, as in a notebook's worker
                break
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            # None means that JAX's multi-process runtime set the handler, not Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt(
                "stopped at once; the run goes on from its last checkpoint"
            )
        self.signal = number
        if self._at_once:
            raise self._error("nothing was lost; the same command goes on from there")

    @property
    def now(self) -> bool:
        """Whether the run may stop here, without asking other processes.

        Each process gets its signal at a different moment. Several processes must
        therefore agree on a step first, and go on until then.
        """
        return self.signal is not None and jax.process_count() == 1

    def between(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `compute` so that it raises `Asked` as soon as the run may stop."""

        def checked(*args: Any) -> Any:
            if self.now:
                raise Asked
            return compute(*args)

        return checked

    def error(self, step: int) -> BaseException:
        """Return the exception to raise once the state of `step` is saved."""
        return self._error(f"saved at step {step}; the same command goes on from there")

    def _error(self, text: str) -> BaseException:
        return (Preempted if self.signal == signal.SIGTERM else KeyboardInterrupt)(text)
