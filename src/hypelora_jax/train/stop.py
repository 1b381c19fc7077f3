"""Signals that ask a run to stop: remembered, obeyed between steps, never in a save."""

import signal
from types import FrameType

from hypelora_jax.types import Preempted


class StopRequest:
    """Catches SIGINT and SIGTERM while training; a context manager.

    The first signal is remembered, and the loop stops after the step under way with its
    state saved. A second Ctrl-C stops at once, and what was saved last counts.
    """

    def __init__(self):
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._remember)
            except ValueError:  # not the main thread, as in a notebook's worker
                break
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt("stopped at once; the last checkpoint counts")
        self.signal = number

    def error(self, step: int) -> BaseException:
        """What to raise once the state of `step` is saved."""
        text = f"saved at step {step}; the same command goes on from there"
        if self.signal == signal.SIGTERM:
            return Preempted(text)
        return KeyboardInterrupt(text)
