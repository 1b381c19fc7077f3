"""Bootstrap replicas of metrics, computed on the device."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hypelora_jax.calibration import arrays, metrics
from hypelora_jax.calibration.arrays import Array
from hypelora_jax.calibration.metrics import (
    binned,
    equal_mass,
    kernel,
    likelihood,
    ranking,
    risk_coverage,
    smooth,
    sums,
    thresholded,
)
from hypelora_jax.calibration.metrics.binned import Bins
from hypelora_jax.calibration.metrics.kernel import Blocks
from hypelora_jax.calibration.metrics.ranking import Ranking

MAX_ENTRIES = 1 << 21  # entries of the replicas computed together, about 200 MB
MAX_REPLICAS = 32

BY_RANKING = (
    *("ace", "ece_mass", "ece_mass_l2", "ece_mass_max", "ece_debiased"),
    *("aurc", "augrc", "auroc_error"),
    *(f"risk_at_coverage_{c}" for c in risk_coverage.COVERAGES),
)
BY_ENTRY = {thresholded.name(eps): eps for eps in thresholded.THRESHOLDS}


class Data(NamedTuple):
    """Arrays that replicas are computed from; a field is None if no metric needs it."""

    rows: Array | None  # (N,); only its length is used, the number of rows
    scores: dict[str, Array]  # (N,) one number for each example, averaged
    bins: tuple[Array, ...] | None  # (index_SN, gap_SN, hit_SN): top class, each class
    top: Ranking | None  # predicted classes
    classes: Ranking | None  # (Y, N) probabilities of each class
    entries: Ranking | None  # (N * Y,) all probabilities
    smooth: tuple[Array, Array] | None  # (conf_N, residual_N)
    blocks: Blocks | None  # of the kernel error, which draws blocks


def names(soft: bool = False, n: int | None = None) -> tuple[str, ...]:
    """Names of the metrics that have replicas.

    Counts have none, nor have the noise floor and p of the consistency test. The errors
    tace_*_reference have none either, because their pairing of rows and labels has no
    meaning once rows are drawn. `kernel_ce` draws blocks, so it has replicas only if n
    examples fill more than one block.
    """
    several = n is None or n > kernel.BLOCK
    rest = ("ace_per_class", "smooth_ece", *(("kernel_ce",) if several else ()))
    return (*sums.NAMES, *BY_RANKING, *BY_ENTRY, *rest, *(metrics.SOFT if soft else ()))


def draw(
    probs: np.ndarray,
    labels: np.ndarray,
    soft: np.ndarray | None,
    wanted: tuple[str, ...],
    number: int,
    seed: int = 0,
    bins: int = 10,
) -> dict[str, np.ndarray]:
    """Compute replicas (R,) in float64 of the wanted metrics, by name.

    Replica i depends only on the seed and i. It draws the same examples for any number
    of replicas, any metrics and any device.
    """
    p, y = np.asarray(probs, np.float64), np.asarray(labels)
    data = jax.device_put(prepare(p, y, soft, wanted, bins))
    key, step = jax.random.key(seed), at_once(len(p), p.shape[1], wanted)
    # the last chunk is as long as the others, so one program is compiled for all
    chunks = [
        _replicas(data, key, np.arange(i, i + step, dtype=np.uint32), wanted, bins)
        for i in range(0, number, step)
    ]
    joined = {k: np.concatenate([np.asarray(c[k]) for c in chunks]) for k in wanted}
    return {k: x[:number].astype(np.float64) for k, x in joined.items()}


def at_once(n: int, num_classes: int, wanted: tuple[str, ...]) -> int:
    """Return the number of replicas to compute together."""
    by_class = {"ace_per_class", *BY_ENTRY} & set(wanted)
    entries = n * num_classes if by_class else n
    return max(1, min(MAX_ENTRIES // entries, MAX_REPLICAS))


def prepare(
    p: np.ndarray,
    y: np.ndarray,
    soft: np.ndarray | None,
    wanted: tuple[str, ...],
    bins: int,
) -> Data:
    """Sort and score the data for the wanted metrics in float64; return float32."""
    asked = set(wanted)
    conf_N, hit_N = arrays.top(p, y)
    ones, classes = np.ones(len(y)), range(p.shape[1])
    data = Data(None, _scores(p, y, hit_N, soft, asked), *[None] * 6)
    if asked - {"kernel_ce"}:
        data = data._replace(rows=y)
    if asked & set(sums.NAMES):
        data = data._replace(bins=_series(p, y, bins))
    if asked & set(BY_RANKING):
        data = data._replace(top=ranking.of_top(p, y))
    if "ace_per_class" in asked:
        rankings = [ranking.of_class(p, y, c) for c in classes]
        data = data._replace(classes=_stacked(rankings))
    if asked & set(BY_ENTRY):
        entries, _ = thresholded.pairings(p, y, ones)["correct"]
        data = data._replace(entries=entries)
    if "smooth_ece" in asked:
        data = data._replace(smooth=(conf_N, hit_N - conf_N))
    if "kernel_ce" in asked:
        data = data._replace(blocks=kernel.blocks(p, y, ones))
    return jax.tree.map(_narrow, data)


def _narrow(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32 if x.dtype.kind == "f" else np.int32)


def _stacked(rankings: list[Ranking]) -> Ranking:
    return Ranking(*(np.stack(x) for x in zip(*rankings, strict=True)))


def _scores(
    p: np.ndarray,
    y: np.ndarray,
    hit_N: Array,
    soft: np.ndarray | None,
    asked: set[str],
) -> dict[str, Array]:
    out: dict[str, Array] = {}
    if asked & set(sums.NAMES):
        out = {"hit": hit_N}
        out |= {"nll": likelihood.nll_of(p, y), "brier": likelihood.brier_of(p, y)}
    if asked & set(metrics.SOFT):
        s = np.asarray(soft, np.float64)
        out |= {name: of_each(p, s) for name, of_each in metrics.SOFT.items()}
    return out


def _series(p: np.ndarray, y: np.ndarray, bins: int) -> tuple[Array, ...]:
    """Bin, gap and hit of each example: for the predicted class, then each class."""
    conf_N, hit_N = arrays.top(p, y)
    conf_SN = np.concatenate([conf_N[None], p.T])
    classes_YN = arrays.onehot(y, p.shape[1]).T.astype(np.float64)
    hit_SN = np.concatenate([hit_N[None], classes_YN])
    return binned.index(conf_SN, bins), conf_SN - hit_SN, hit_SN


@functools.partial(jax.jit, static_argnames=("wanted", "bins"))
def _replicas(
    data: Data, key: jax.Array, index_R: jax.Array, wanted: tuple[str, ...], bins: int
) -> dict[str, Array]:
    """Compute the replicas (R,) with the numbers `index_R`, by name of the metric."""
    # a key by the replica's number, so that the draws do not depend on the chunks
    keys_R = jax.vmap(jax.random.fold_in, (None, 0))(key, index_R)
    out: dict[str, Array] = {}
    if data.rows is not None:
        weight_RN = jax.vmap(counts, (0, None))(keys_R, len(data.rows))
        out |= by_sums(data, weight_RN, bins)
        out |= jax.vmap(lambda w: _by_weight(data, w, bins))(weight_RN)
    if data.blocks is not None:
        draw_blocks = functools.partial(_kernel, data.blocks)
        out["kernel_ce"] = jax.vmap(draw_blocks)(keys_R)
    return {name: out[name] for name in wanted}


def counts(key: jax.Array, n: int) -> jax.Array:
    """Count how often each of n rows is drawn, with replacement, float32 (n,)."""
    drawn = jax.random.randint(key, (n,), 0, n)
    return jnp.zeros(n, jnp.float32).at[drawn].add(1)


def by_sums(data: Data, weight_RN: jax.Array, bins: int) -> dict[str, Array]:
    """Compute metrics (R,) from sums over examples; one matrix product gives all sums.

    Args:
      data: the result of `prepare`.
      weight_RN: how often each replica drew each example.
      bins: number of bins of the calibration errors, the same as for `prepare`.
    """
    # a TPU multiplies in bfloat16 by default, which would round the sums
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    scores = {k: product(weight_RN, x_N) for k, x_N in data.scores.items()}
    n_R = jnp.sum(weight_RN, axis=1)
    out: dict[str, Array] = {k: scores[k] / n_R for k in metrics.SOFT if k in scores}
    if data.bins is None:
        return out

    def of_series(series: tuple[jax.Array, ...]) -> Bins:
        index_N, gap_N, hit_N = series
        in_NM = (index_N[:, None] == jnp.arange(bins)[None]).astype(jnp.float32)
        parts = in_NM, in_NM * gap_N[:, None], in_NM * hit_N[:, None]
        got = product(weight_RN, jnp.concatenate(parts, axis=1))
        return Bins(*jnp.split(got, 3, axis=1))

    held_SRM = jax.lax.map(of_series, data.bins)
    top = jax.tree.map(lambda x: x[0], held_SRM)
    classes = jax.tree.map(lambda x: jnp.swapaxes(x[1:], 0, 1), held_SRM)
    hit_R, nll_R, brier_R = scores["hit"], scores["nll"], scores["brier"]
    state = sums.Sums(n_R, hit_R, nll_R, brier_R, top, classes)
    return out | jax.vmap(sums.compute)(state)


def _by_weight(data: Data, weight_N: jax.Array, bins: int) -> dict[str, Array]:
    """Compute metrics of rankings, and the smooth error, under one set of weights."""
    out: dict[str, Array] = {}
    if data.top is not None:
        running = ranking.curve(data.top, weight_N)
        out["ace"] = binned.l1(equal_mass.by_rank(running, bins))
        out |= metrics.of_ranking(data.top, running, bins)
    if data.classes is not None:
        errors_Y = jax.lax.map(
            lambda entries: equal_mass.of_ranking(entries, weight_N, bins), data.classes
        )
        out["ace_per_class"] = jnp.mean(errors_Y)
    if data.entries is not None:
        running = ranking.curve(data.entries, weight_N)
        for name, eps in BY_ENTRY.items():
            out[name] = thresholded.above(data.entries, running, eps, bins)
    if data.smooth is not None:
        conf_N, residual_N = data.smooth
        wave_K = smooth.coefficients(conf_N, residual_N * weight_N, weight_N)
        out["smooth_ece"] = smooth.at_fixed_point(wave_K)
    return out


def _kernel(blocks: Blocks, key: jax.Array) -> jax.Array:
    """Kernel error of blocks drawn with replacement.

    Drawing examples would put copies of one example into a block, and pairs of copies
    would bias the error upwards.
    """
    # fold in 1, so that blocks are drawn independently of the examples under this key
    weight_K = counts(jax.random.fold_in(key, 1), len(blocks.value))
    pairs = jnp.sum(blocks.pairs * weight_K)
    return arrays.share(jnp.sum(blocks.value * weight_K), pairs)
