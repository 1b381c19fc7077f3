"""The share of the deltas of a hyper-network that varies between its conditions.

A network that ignores its condition writes one delta for all, and the share is 0.
"""

from typing import Any

import jax
import numpy as np

from hypelora_jax import trees
from hypelora_jax.adapters import gram
from hypelora_jax.adapters.sites import Sites
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.sharding.mesh import replicated
from hypelora_jax.train import ensembles
from hypelora_jax.types import Lora

MOST = 512  # conditions; the factors of all of them are held at once


def of_tasks(fitted: Fitted, tasks_K: np.ndarray) -> dict[str, Any]:
    """Return the `shares` of what a run writes for some tasks of its set.

    Of more than MOST tasks it takes as many, evenly spaced. The result is empty if
    each row has an adapter of its own, or if there are fewer than two tasks.
    """
    session = fitted.session
    arrays, parts = session.tasks, session.model.parts
    if arrays is None or arrays.single or len(tasks_K) < 2:
        return {}
    at = np.unique(np.linspace(0, len(tasks_K) - 1, MOST).astype(int))
    used = tasks_K[at]
    given = {n: x[used] for n, x in arrays.conditions.items()}
    # which a conditioner of shared vectors passes on, and nothing here reads
    given["row"] = np.arange(len(used), dtype=np.int32)

    def write(params: Any, alpha: jax.Array, given: dict[str, jax.Array]) -> Lora:
        return session.model.adapt(params, given, alpha).factors

    # whole on every device, as in `summary.deltas`
    write = jax.jit(write, out_shardings=replicated(session.mesh))
    own = ensembles.member(session.settings, fitted.trainable, fitted.frozen, 0)
    params = trees.union(*own)
    params = {n: x for n, x in params.items() if n not in ("backbone", "head")}
    factors = write(params, np.asarray(fitted.alpha), given)
    return shares(factors, parts.hyper_sites)


def shares(factors: Lora, sites: Sites) -> dict[str, Any]:
    """Return sum_u |D_u - M|^2 / sum_u |D_u|^2 of U deltas D_u with the mean M.

    It is in [0, 1], and 0 if all deltas are zero. Norms are those of Frobenius, in
    float64, and no delta is built.

    Args:
      factors: a_LUIR and b_LURO of all layers, with their scale.
      sites: the sites that the network writes; others do not count.

    Returns:
      `whole`, of the sums over all sites; `modules`, of the sums over the layers of
      each; and `conditions`, U.
    """
    found = {}
    for m, site in sites.items():  # one at a time, because float64 takes more memory
        rows, f = np.asarray(site.layers), factors[m]
        with jax.enable_x64(True):
            wide = {n: np.asarray(x, np.float64)[rows] for n, x in f.items()}
            (spread,) = jax.device_get(gram.spread({m: wide})).values()
        found[m] = np.array([spread.between.sum(), spread.moment.sum()])
    return {
        "whole": _share(sum(found.values())),
        "modules": {m: _share(x) for m, x in found.items()},
        "conditions": factors[next(iter(sites))]["a"].shape[1],
    }


def _share(sums: Any) -> float:
    between, moment = sums
    return float(between / moment) if moment else 0.0
