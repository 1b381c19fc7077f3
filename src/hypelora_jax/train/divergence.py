"""Finds losses, gradients and outputs of a model that are NaN or infinite."""

from collections import deque
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from hypelora_jax.errors import UserError
from hypelora_jax.types import Params

SHOWN = 512  # a message lists at most this many ids of a batch

WAY_OUT = (
    "Look at these examples, lower config.optim.lr or raise optim.warmup, or let "
    "optim.skip_nonfinite steps pass"
)


class NotFinite(UserError):
    """A model has no answer to some examples: its outputs are NaN or infinite.

    `rows` are the numbers of these examples in the data that it was asked about.
    """

    def __init__(self, rows: np.ndarray, name: object):
        super().__init__(
            f"the model's outputs for example {name} are NaN or infinite; expected "
            "finite numbers. The run diverged or its weights are damaged: train or "
            "import it again"
        )
        self.rows = rows


def check_outputs(out: np.ndarray, ids: Sequence[object] | np.ndarray = ()) -> None:
    """Check that logits, scores or probabilities are finite.

    Everything that a model answers, in any command, passes this check.

    Args:
      out: (..., N, Y), outputs for N examples.
      ids: (N,), names of the examples for the message; () counts them from 0.

    Raises:
      NotFinite: the outputs for an example are not; the message names the first one.
    """
    good = np.isfinite(out).all(axis=-1)
    rows = np.flatnonzero(~good.all(axis=tuple(range(good.ndim - 1))))
    if len(rows):
        raise NotFinite(rows, ids[rows[0]] if len(ids) else int(rows[0]))


class Guard:
    """Watches the flag `finite` of every step, one step late.

    The flag of step s is read after step s + 1 was dispatched, so the device never
    waits for the host. `settle` reads the remaining flags; it is called before a row is
    logged and before a save.

    Args:
      limit: steps that may be skipped in the whole run (optim.skip_nonfinite).
      skipped: steps that were skipped before the run was resumed.
      latest: returns the step of the newest checkpoint once it is complete.
    """

    def __init__(self, limit: int, skipped: int, latest: Callable[[], int | None]):
        self.skipped = skipped
        self._limit, self._latest = limit, latest
        self._pending: deque[tuple[int, list, jax.Array]] = deque()

    def add(self, step: int, ids: list, finite: jax.Array) -> None:
        """Remember a step that is running, and check the one before it.

        Raises:
          UserError: the step before is not finite, and no more steps may be skipped.
        """
        self.settle()
        self._pending.append((step, ids, finite))

    def settle(self) -> bool:
        """Check all steps so far, and return whether the last one was finite."""
        fine = True
        while self._pending:
            step, ids, finite = self._pending.popleft()
            fine = bool(finite)
            if not fine:
                self._refuse(step, ids)
        return fine

    def _refuse(self, step: int, ids: list) -> None:
        shown = ", ".join(map(str, ids[:SHOWN])) + ", ..." * (len(ids) > SHOWN)
        what = f"the loss or its gradient is not finite at step {step} (ids {shown})"
        if self.skipped < self._limit:
            self.skipped += 1
            logging.warning(
                "%s; skipped, %d of at most %d", what, self.skipped, self._limit
            )
            return
        raise UserError(f"{what}; {last_good(self._latest())}. {WAY_OUT}")


def last_good(step: int | None) -> str:
    """Return the part of a message that says which checkpoint a run can resume from."""
    return (
        f"the last good checkpoint is step {step}"
        if step
        else "there is no checkpoint yet"
    )


@jax.jit
def all_finite(params: Params) -> jax.Array:
    """Return whether every number of a tree is finite."""
    leaves = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]
    return jnp.all(jnp.stack(leaves))
