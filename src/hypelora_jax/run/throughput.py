"""Examples and tokens per second, measured over intervals of training."""

import time


class Throughput:
    """Examples and tokens per second since the last reading."""

    def __init__(self) -> None:
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
