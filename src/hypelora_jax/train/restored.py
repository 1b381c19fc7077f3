"""The chosen checkpoint of a run folder, read back without training."""

import jax
from etils import epath

from hypelora_jax.errors import UserError
from hypelora_jax.train import session
from hypelora_jax.train.checkpoint.checkpoints import Checkpoints
from hypelora_jax.train.session import Workbench
from hypelora_jax.train.state import TrainState
from hypelora_jax.types import Params


def chosen(
    bench: Workbench, workdir: epath.Path, total_steps: int
) -> tuple[TrainState, Params, jax.Array, int]:
    """(state, frozen, alpha, step) of the chosen checkpoint of a run folder.

    Raises:
      UserError: the folder holds no complete checkpoint.
    """
    with Checkpoints(workdir) as saved:
        step = saved.best()
        if step is None:
            raise UserError(
                f"{workdir} holds no complete checkpoint; wanted a run trained for an "
                "epoch at least: run hypelora train with the same --workdir"
            )
        abstract, _, alpha = session.start(bench, total_steps)
        got = saved.restore(step, abstract, session.own_frozen(bench.frozen))
        frozen = session.with_own(bench.frozen, got.frozen)
        return got.state, frozen, alpha(max(step - 1, 0)), step
