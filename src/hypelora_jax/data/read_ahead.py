"""An iterator whose items a thread makes before they are asked for."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class ReadAhead:
    """Iterates over make(0), ..., make(count - 1), of which some are made ahead.

    The state is the number of items that were given out.

    Args:
      count: number of items.
      make: makes item i; it is called in order, in one thread.
      ahead: items made ahead.
    """

    def __init__(self, count: int, make: Callable[[int], Any], ahead: int = 8):
        self._count, self._make, self._ahead = count, make, ahead
        self._given = 0
        self._futures: deque[Future] = deque()
        self._thread = ThreadPoolExecutor(1, "data")

    def __next__(self) -> Any:
        self._fill()
        if not self._futures:
            raise StopIteration
        item = self._futures.popleft().result()
        self._given += 1
        self._fill()
        return item

    def _fill(self) -> None:
        first = self._given + len(self._futures)
        last = min(self._given + self._ahead, self._count)
        for i in range(first, last):
            self._futures.append(self._thread.submit(self._make, i))

    def get_state(self) -> dict[str, Any]:
        """Return the position as JSON values."""
        return {"next_index": self._given}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position that `get_state` returned."""
        while self._futures:
            self._futures.popleft().cancel()
        self._given = state["next_index"]
