"""A run that is alone in a service: its weights are merged, and its texts packed.

The adapter is added to the backbone's kernels, W + A B, once. Short texts share the
rows of a batch, so that hardly any token is padding.
"""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from hypelora_jax import trees
from hypelora_jax.adapters import lora
from hypelora_jax.data.batches import Dataset, NumpyBatch
from hypelora_jax.data.layouts.packing import collate, placed
from hypelora_jax.evaluate import evaluation
from hypelora_jax.evaluate.fitted import Answer, Answerer, Fitted
from hypelora_jax.inference.bank import mixes
from hypelora_jax.inference.predictor import Predictor
from hypelora_jax.train import scoring
from hypelora_jax.types import Adapter, Batch, Params

# Rows are not made longer than this, because every token meets every other one of its
# row, although it attends to those of its own text only.
LONGEST = 128


def merges(predictor: Predictor) -> bool:
    """Whether the weights of a run can be merged.

    It must not need several passes or adapters, nor compute in bfloat16: W + A B would
    be rounded to it, which loses most of a small A B.
    """
    dtype = predictor.fitted.session.settings.model.dtype
    return np.dtype(dtype).itemsize >= 4 and mixes(predictor)


def merged(predictor: Predictor) -> Predictor:
    """Return the predictor with merged weights; its program is the bare backbone's.

    The answerers have to be made again. Another run is returned unchanged.
    """
    if not merges(predictor):
        return predictor
    fitted = predictor.fitted
    params = trees.union(fitted.trainable, fitted.frozen)
    adapter = fitted.forward.adapt(params, np.asarray(fitted.alpha), {})
    backbone = params["backbone"]
    where = jax.tree.map(lambda x: x.sharding, backbone)
    kernels = jax.jit(lora.merge, out_shardings=where)(backbone, adapter.factors)

    def none(params: Params, alpha: jax.Array, conditions: Batch) -> Adapter:
        del params, alpha, conditions
        return Adapter({})

    forward = fitted.forward._replace(adapt=none)
    frozen = {**fitted.frozen, "backbone": kernels}
    return predictor._replace(fitted=fitted._replace(forward=forward, frozen=frozen))


def row_length(edges: tuple[int, ...]) -> int:
    """Return the length T of packed rows: the longest edge of at most LONGEST tokens.

    If all edges are longer, it is the shortest one.
    """
    return max((edge for edge in edges if edge <= LONGEST), default=edges[0])


def packed(predictor: Predictor) -> Predictor:
    """Return a merged predictor with answerers that pack texts.

    Batches have the fewest rows of before, twice as many, and so on up to the most. A
    run that does not merge is returned unchanged, and so is one whose attention is a
    kernel, which takes no packed rows.
    """
    if not merges(predictor) or predictor.settings.model.attention == "fused":
        return predictor
    fitted, edges, longest = (
        predictor.fitted,
        predictor.edges,
        row_length(predictor.edges),
    )
    sizes, most = [min(predictor.answerers)], max(predictor.answerers)
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    # only the smallest batches have shorter rows, so that few programs are compiled
    lengths = dict.fromkeys(sizes, [longest])
    lengths[sizes[0]] = [edge for edge in edges if edge <= longest]
    answerers = {rows: _answerer(fitted, edges, rows, lengths[rows]) for rows in sizes}
    return predictor._replace(answerers=answerers, packs=longest)


def _answerer(
    fitted: Fitted, edges: tuple[int, ...], rows: int, lengths: Sequence[int]
) -> Answerer:
    """Return the function that predicts in batches of `rows` packed rows.

    The rows of a batch have the first of `lengths`, ascending, that its texts fit in.
    If a text is longer than all of them, each text has a row of its own, whose length
    is one of `edges`.
    """
    alone = evaluation.answerer(fitted, edges, rows)

    def batches(data: Dataset) -> Iterator[NumpyBatch]:
        for length in lengths:
            if length >= data.lengths.max():
                layout, filled = placed(data.lengths, length)
                if len(filled) <= rows:
                    break
        for i in range(0, len(filled), rows):
            own = filled[i : i + rows]
            own += [filled[0][:0]] * (rows - len(own))
            yield collate(data, own, layout)

    def answer(data: Dataset) -> Answer:
        if data.lengths.max() > lengths[-1]:
            return alone(data)
        own = fitted.trainable, fitted.frozen, fitted.alpha, batches(data)
        logits_NY = scoring.logits(fitted.forward, *own, len(data.ids))
        if not np.isfinite(logits_NY).all():
            return alone(data)  # NaN of a text, times 0, is NaN for others of its row
        return Answer(logits_NY)

    return answer
