"""How well a run writes the adapters that it learns, without any text.

R^2 = 1 - sum |D - D'|^2 / sum |D' - M|^2 over tasks and sites, where D' is the delta
that is given, D the one that is made and M the mean delta of the training tasks: 0 is
as good as one adapter for all. The cosine is that of all sites of a task together.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hypelora_jax import trees
from hypelora_jax.adapters import gram
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import replicated
from hypelora_jax.train.conditioning.targets import LEAF
from hypelora_jax.train.session import Session
from hypelora_jax.types import Lora, Params

CHUNK = 32  # tasks whose adapters are made at once
LEAST = 1e-5  # share of the deltas' squares below which they do not differ


class Sums(NamedTuple):
    """Sums over the sites of each of K tasks, float64 (K,); zero without an adapter.

    `error` is |D - D'|^2, `total` |D' - M|^2, `inner` <D, D'>, `made` |D|^2 and `given`
    |D'|^2.
    """

    error: np.ndarray
    total: np.ndarray
    inner: np.ndarray
    made: np.ndarray
    given: np.ndarray


def of_log(
    session: Session, trainable: Params, frozen: Params, alpha: jax.Array
) -> dict[str, float]:
    """Return R^2 and cosine of the training tasks, and of held-out ones with adapters.

    It is empty if the run does not learn adapters.
    """
    sums = _sums(session, trainable, frozen, alpha)
    if sums is None or session.task_set is None:
        return {}
    held_out = np.asarray(session.task_set.held_out)
    others = _recovery(sums, np.flatnonzero(held_out))
    own = _recovery(sums, np.flatnonzero(~held_out))
    return own | {f"held_out_{name}": x for name, x in others.items()}


def of_split(
    session: Session,
    trainable: Params,
    frozen: Params,
    alpha: jax.Array,
    task_N: np.ndarray,
) -> dict[str, Any]:
    """Return R^2 and cosine of the tasks of some rows, together and one by one.

    It is empty if the run does not learn adapters.
    """
    sums = _sums(session, trainable, frozen, alpha)
    if sums is None or session.task_set is None:
        return {}
    tasks, names = np.unique(task_N), session.task_set.names
    each = {names[k]: found for k in tasks if (found := _recovery(sums, [k]))}
    return _recovery(sums, tasks) | ({"adapters": each} if each else {})


def _recovery(sums: Sums, tasks: Sequence[int] | np.ndarray) -> dict[str, float]:
    at = [k for k in tasks if sums.given[k] > 0]
    if not at:
        return {}
    norms = np.sqrt(sums.made[at] * sums.given[at])
    cosine = np.divide(sums.inner[at], norms, out=np.zeros(len(at)), where=norms > 0)
    out = {"delta_cosine": float(np.mean(cosine))}
    total = float(np.sum(sums.total[at]))
    if total > LEAST * np.sum(sums.given[at]):  # else all are the mean adapter
        out["delta_r2"] = 1 - float(np.sum(sums.error[at])) / total
    return out


def _sums(
    session: Session, trainable: Params, frozen: Params, alpha: jax.Array
) -> Sums | None:
    tasks, arrays = session.task_set, session.tasks
    if LEAF not in frozen or tasks is None or arrays is None:
        return None
    given, params = frozen[LEAF]["factors"], trees.union(trainable, frozen)
    trained = np.flatnonzero(~np.asarray(tasks.held_out))
    mean = gram.mean(jax.tree.map(lambda x: x[:, trained], given))
    count, parts = len(tasks.names), []
    size = max(2, min(count, CHUNK))  # one condition has no axis U
    for start in range(0, count, size):
        at = np.arange(start, start + size) % count
        some = {name: x[at] for name, x in arrays.conditions.items()}
        whole = {name: replicated(session.mesh) for name in some}
        batch = rules.place(some, whole)
        made = session.forward.adapt(params, np.asarray(alpha), batch).factors
        own = jax.tree.map(lambda x, at=at: x[:, at], given)
        parts.append(_measured(session.mesh)(made, own, mean))
    joined = (np.concatenate(x)[:count] for x in zip(*parts, strict=True))
    return Sums(*(x.astype(np.float64) for x in joined))


@functools.lru_cache(maxsize=2)
def _measured(mesh: Mesh) -> Callable[[Lora, Lora, Lora], Sums]:
    """Return the jitted function of factors made, factors given, and their mean."""

    def measured(made: Lora, given: Lora, mean: Lora) -> Sums:
        out = []
        for m, own in made.items():
            each = {n: x[:, None] for n, x in mean[m].items()}
            site = (
                gram.squared_distance(own, given[m]),
                gram.squared_distance(given[m], each),
                gram.inner(own, given[m]),
                gram.squared_norm(own),
                gram.squared_norm(given[m]),
            )
            out.append([jnp.sum(x_LU, axis=0) for x_LU in site])
        return Sums(*(sum(x[1:], x[0]) for x in zip(*out, strict=True)))

    # whole on every device, so that each of several processes can read the results
    return jax.jit(measured, out_shardings=replicated(mesh))
