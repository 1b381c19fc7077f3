"""Bootstrap replicas of metrics on the device: what `bootstrap` makes intervals of."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.calibration import arrays, metrics
from hypelora_jax.calibration.metrics import (
    binned,
    equal_mass,
    kernel,
    likelihood,
    smooth,
    streaming,
)
from hypelora_jax.calibration.metrics.binned import Bins
from hypelora_jax.calibration.metrics.equal_mass import Ordered
from hypelora_jax.calibration.metrics.kernel import Blocks

AT_ONCE = 1 << 21  # entries of the replicas computed together: some 200 MB of work
MOST_AT_ONCE = 32

BY_SUMS = tuple(streaming.compute(streaming.init(2)))
BY_ORDER = (
    *("ace", "ece_mass", "ece_mass_l2", "ece_mass_max", "ece_debiased"),
    *("aurc", "augrc", "auroc_error"),
    *(f"risk_at_coverage_{c}" for c in metrics.COVERAGES),
)
BY_ENTRY = {metrics.tace_name(eps): eps for eps in metrics.TACE_EPS}


class Data(NamedTuple):
    """What replicas are made of; parts that no metric asks for are None."""

    rows: Any  # (N,) of no matter what: says how many there are to draw
    scores: Any  # {name: (N,)} means of one number an example
    bins: Any  # (index_SN, gap_SN, hit_SN) of the top label and each class
    top: Ordered | None  # top labels
    classes: Ordered | None  # (Y, N) probabilities of each class
    entries: Ordered | None  # (N * Y,) all probabilities
    smooth: Any  # (conf_N, residual_N)
    blocks: Blocks | None  # of the kernel error: they are drawn, not the examples


def names(soft: bool = False, n: int | None = None) -> tuple[str, ...]:
    """Metrics that have replicas: all but counts and what depends on rows' order.

    Left out are tace_*_reference, whose pairing of rows and labels means nothing once
    rows are drawn, and the noise floor and p of the consistency test. Of n examples
    that make one block of the kernel error there is nothing to draw it from.
    """
    rest = ("ace_per_class", "smooth_ece")
    rest += ("kernel_ce",) if n is None or n > kernel.BLOCK else ()
    return (*BY_SUMS, *BY_ORDER, *BY_ENTRY, *rest, *(metrics.SOFT if soft else ()))


def draw(
    probs: np.ndarray,
    labels: np.ndarray,
    soft: np.ndarray | None,
    wanted: tuple[str, ...],
    number: int,
    seed: int = 0,
    bins: int = 10,
) -> dict[str, np.ndarray]:
    """Replicas (R,) in float64 of the metrics wanted, of `names`.

    Replica i of a seed draws the same examples whatever the number, the metrics and the
    device.
    """
    p, y = np.asarray(probs, np.float64), np.asarray(labels)
    data = jax.device_put(prepare(p, y, soft, wanted, bins))
    key, step = jax.random.key(seed), at_once(*p.shape, wanted)
    # whole chunks, one after the other: one program, whatever the number
    chunks = [
        _replicas(data, key, np.arange(i, i + step, dtype=np.uint32), wanted, bins)
        for i in range(0, number, step)
    ]
    joined = {k: np.concatenate([np.asarray(c[k]) for c in chunks]) for k in wanted}
    return {k: x[:number].astype(np.float64) for k, x in joined.items()}


def at_once(n: int, num_classes: int, wanted: tuple[str, ...]) -> int:
    """Replicas computed together."""
    by_class = {"ace_per_class", *BY_ENTRY} & set(wanted)
    entries = n * num_classes if by_class else n
    return max(1, min(AT_ONCE // entries, MOST_AT_ONCE))


def prepare(
    p: np.ndarray,
    y: np.ndarray,
    soft: np.ndarray | None,
    wanted: tuple[str, ...],
    bins: int,
) -> Data:
    """Data for the metrics wanted: sorted and scored in float64, kept in float32."""
    asked = set(wanted)
    conf_N, hit_N = arrays.top(p, y)
    ones, classes = np.ones(len(y)), range(p.shape[1])
    data = Data(
        y if asked - {"kernel_ce"} else None,
        _scores(p, y, hit_N, soft, asked),
        _series(p, y, bins) if asked & set(BY_SUMS) else None,
        equal_mass.of_top(p, y) if asked & set(BY_ORDER) else None,
        _stacked([equal_mass.of_class(p, y, c) for c in classes])
        if "ace_per_class" in asked
        else None,
        equal_mass.thresholded(p, y, ones)["correct"][0]
        if asked & set(BY_ENTRY)
        else None,
        (conf_N, hit_N - conf_N) if "smooth_ece" in asked else None,
        kernel.blocks(p, y, ones) if "kernel_ce" in asked else None,
    )
    return jax.tree.map(_narrow, data)


def _narrow(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32 if x.dtype.kind == "f" else np.int32)


def _stacked(held: list[Ordered]) -> Ordered:
    return Ordered(*(np.stack(x) for x in zip(*held, strict=True)))


def _scores(
    p: np.ndarray,
    y: np.ndarray,
    hit_N: np.ndarray,
    soft: np.ndarray | None,
    asked: set[str],
) -> dict[str, np.ndarray] | None:
    out = {}
    if asked & set(BY_SUMS):
        out = {"hit": hit_N}
        out |= {"nll": likelihood.nll_of(p, y), "brier": likelihood.brier_of(p, y)}
    if asked & set(metrics.SOFT):
        s = np.asarray(soft, np.float64)
        out |= {name: metrics.SOFT_OF[name](p, s) for name in metrics.SOFT}
    return out or None


def _series(p: np.ndarray, y: np.ndarray, bins: int) -> tuple[np.ndarray, ...]:
    """Bin, gap and hit of each example, for the top label and then for each class."""
    conf_N, hit_N = arrays.top(p, y)
    conf_SN = np.concatenate([conf_N[None], p.T])
    classes_YN = arrays.onehot(y, p.shape[1]).T.astype(np.float64)
    hit_SN = np.concatenate([hit_N[None], classes_YN])
    return binned.index(conf_SN, bins), conf_SN - hit_SN, hit_SN


@functools.partial(jax.jit, static_argnames=("wanted", "bins"))
def _replicas(
    data: Data, key: jax.Array, index_R: jax.Array, wanted: tuple[str, ...], bins: int
) -> dict[str, jax.Array]:
    """Replicas (R,) by name, those of the numbers given."""
    keys_R = jax.vmap(jax.random.fold_in, (None, 0))(key, index_R)
    out = {}
    if data.rows is not None:
        weight_RN = jax.vmap(counts, (0, None))(keys_R, len(data.rows))
        out |= by_sums(data, weight_RN, bins)
        out |= jax.vmap(lambda w: _by_order(data, w, bins))(weight_RN)
    if data.blocks is not None:
        out["kernel_ce"] = jax.vmap(lambda k: _kernel(data.blocks, k))(keys_R)
    return {name: out[name] for name in wanted}


def counts(key: jax.Array, n: int) -> jax.Array:
    """How often each of n was drawn in n draws with replacement, float32 (n,)."""
    drawn = jax.random.randint(key, (n,), 0, n)
    return jnp.zeros(n, jnp.float32).at[drawn].add(1)


def by_sums(data: Data, weight_RN: jax.Array, bins: int) -> dict[str, jax.Array]:
    """Metrics (R,) of sums over examples: all sums of all replicas are one product.

    Args:
      data: of `prepare`.
      weight_RN: how often each replica drew each example.
      bins: of the calibration errors, as `prepare` had it.
    """
    product = functools.partial(
        jnp.matmul, precision=jax.lax.Precision.HIGHEST
    )  # a TPU would round to bfloat16
    scores = {k: product(weight_RN, x_N) for k, x_N in (data.scores or {}).items()}
    n_R = jnp.sum(weight_RN, axis=1)
    out = {k: scores[k] / n_R for k in metrics.SOFT if k in scores}
    if data.bins is None:
        return out

    def sums(series: tuple[jax.Array, ...]) -> Bins:
        index_N, gap_N, hit_N = series
        in_NM = (index_N[:, None] == jnp.arange(bins)[None]).astype(jnp.float32)
        parts = in_NM, in_NM * gap_N[:, None], in_NM * hit_N[:, None]
        got = product(weight_RN, jnp.concatenate(parts, axis=1))
        return Bins(*jnp.split(got, 3, axis=1))

    held_SRM = jax.lax.map(sums, data.bins)
    top = jax.tree.map(lambda x: x[0], held_SRM)
    classes = jax.tree.map(lambda x: jnp.swapaxes(x[1:], 0, 1), held_SRM)
    three = (scores[k] for k in ("hit", "nll", "brier"))
    return out | jax.vmap(streaming.compute)(streaming.Sums(n_R, *three, top, classes))


def _by_order(data: Data, weight_N: jax.Array, bins: int) -> dict[str, jax.Array]:
    """Metrics of running sums, and the smooth error, under one set of weights."""
    out = {}
    if data.top is not None:
        running = equal_mass.curve(data.top, weight_N)
        out["ace"] = binned.l1(equal_mass.by_rank(running, bins))
        out |= metrics.of_order(data.top, running, bins)
    if data.classes is not None:

        def one(held: Ordered) -> jax.Array:
            return binned.l1(
                equal_mass.by_value(held, equal_mass.curve(held, weight_N), bins)
            )

        out["ace_per_class"] = jnp.mean(jax.lax.map(one, data.classes))
    if data.entries is not None:
        running = equal_mass.curve(data.entries, weight_N)
        for name, eps in BY_ENTRY.items():
            out[name] = equal_mass.above(data.entries, running, eps, bins)
    if data.smooth is not None:
        conf_N, residual_N = data.smooth
        wave_K = smooth.coefficients(conf_N, residual_N * weight_N, weight_N)
        out["smooth_ece"] = smooth.at_fixed_point(wave_K)
    return out


def _kernel(held: Blocks, key: jax.Array) -> jax.Array:
    """Kernel error of blocks drawn with replacement.

    Drawing examples would put copies of one into a block, and pairs of copies would
    bias it upwards.
    """
    weight_K = counts(jax.random.fold_in(key, 1), len(held.value))
    pairs = jnp.sum(held.pairs * weight_K)
    some = pairs > 0
    total = jnp.sum(held.value * weight_K)
    return jnp.where(some, total / jnp.where(some, pairs, 1), 0)
