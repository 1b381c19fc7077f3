"""Starts a run from the parameters of another one (config.ckpt.start)."""

from typing import Any

import jax
import numpy as np
from absl import logging

from hypelora_jax import trees
from hypelora_jax.errors import UserError
from hypelora_jax.interop.base import weights_sha256
from hypelora_jax.run import records
from hypelora_jax.sharding import rules
from hypelora_jax.train.session import Session, open_session
from hypelora_jax.train.training import extras, open_checkpoint
from hypelora_jax.types import Params

OWN = ("head/", "loss/")  # leaves that a run may have and the other one not


def started(session: Session) -> Session:
    """Return the session with the parameters of the best epoch of another run.

    They are all of the adapter: hyper-network, conditioner with its moments, static
    factors. The head is taken, too, if it has the same shapes, and else drawn. The
    optimizer starts anew.

    Raises:
      UserError: the other run has another base model, or other leaves or shapes.
    """
    start = session.settings.ckpt.start
    found = _parameters(session, start)
    if session.model.objective.targets:  # the given adapters bring their head
        found = {path: x for path, x in found.items() if not path.startswith("head/")}
    trainable, frozen = trees.flatten(session.trainable), trees.flatten(session.frozen)
    inside = extras(session.frozen)
    own = trainable | trees.flatten(inside)
    for path in sorted(own.keys() ^ found.keys()):
        if not path.startswith(OWN):
            what = "it has no" if path in own else "it has"
            raise UserError(
                f"config.ckpt.start is {start}, but {what} {path}; expected a run "
                "of the same method, sites, condition and shapes"
            )
    taken = {path: found[path] for path in own.keys() & found.keys()}
    for path, x in taken.copy().items():
        if x.shape == own[path].shape:
            continue
        if not path.startswith(OWN):
            raise UserError(
                f"config.ckpt.start is {start}, whose {path} is {x.shape}, but that of "
                f"this run is {own[path].shape}; expected a run of the same shapes"
            )
        del taken[path]
    left = sorted(path for path in own if path not in taken)
    logging.info("starting from %s%s", start, f", without {left}" if left else "")
    return session._replace(
        trainable=_replaced(trainable, taken), frozen=_replaced(frozen, taken)
    )


def _parameters(session: Session, start: str) -> dict[str, Any]:
    """Return the leaves of the other run's best epoch by path, but its backbone."""
    run, record = records.open_record(start)
    base, settings = record["model"], records.settings_of(record)
    mine = [session.base.name, weights_sha256(session.base)]
    theirs = [base["name"], base["sha256"]]
    if not base["sha256"]:  # weights that are drawn from the seed
        mine.append(str(session.settings.seed))
        theirs.append(str(settings.seed))
    if mine != theirs:
        raise UserError(
            f"config.ckpt.start is {start}, which adapts {base['name']}, and this run "
            f"{session.base.name}; expected a run of the same base model (and of the "
            "same seed, if that draws it)"
        )
    about = (settings, records.task_of(record), base["revision"], session.mesh)
    checkpoint = open_checkpoint(open_session(*about), run)
    tree = trees.union(checkpoint.state.params, extras(checkpoint.frozen))
    return trees.flatten(tree)


def _replaced(flat: dict[str, Any], taken: dict[str, jax.Array]) -> Params:
    """Return a tree with some leaves replaced, placed as they were."""
    some = {path: np.asarray(x) for path, x in taken.items() if path in flat}
    where = {path: flat[path].sharding for path in some}
    return trees.unflatten(flat | rules.place(some, where))
