"""Entries of a batch that conditioners read: their shape and their scale."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.types import Batch, Conditioner, Conditions, Key, Params

DEFAULT_WIDTH = 64  # of vectors that no data bring, as HyperFormer's task embeddings


def unit_rms(x: jax.Array) -> jax.Array:
    """Vectors scaled to a root mean square of 1 over their last axis; 0 stays 0.

    This is L2 normalisation times sqrt(C), the scale of text-to-lora (Charakorn et al.
    2025), so that the entries weigh as much as those of site descriptions.
    """
    square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, 1e-12))


def unit_rms_of(parts: int) -> Callable[[jax.Array], jax.Array]:
    """Return `unit_rms` of each of some parts, which are joined in a vector."""

    def scale(x: jax.Array) -> jax.Array:
        return unit_rms(x.reshape(*x.shape[:-1], parts, -1)).reshape(x.shape)

    return scale


def blank_standard(width: int) -> Params:
    """Mean 0 and deviation 1 (C,), until those of the train split are known."""
    return {"mean": jnp.zeros(width), "std": jnp.ones(width)}


def standardised(x: jax.Array, standard: Params) -> jax.Array:
    """Vectors less the mean, divided by the deviation, in each entry of the last axis.

    `standard` has `mean` and `std`, both (C,).
    """
    lead = (1,) * (x.ndim - 1)
    mean, std = (standard[name].reshape(*lead, -1) for name in ("mean", "std"))
    return (x - mean) / std


def whitened(x: jax.Array, kernel_DD: jax.Array) -> jax.Array:
    """Vectors whose last D entries are multiplied by a symmetric matrix (D, D)."""
    size = len(kernel_DD)
    return jnp.concatenate([x[..., :-size], x[..., -size:] @ kernel_DD], axis=-1)


def entry(
    batch: Batch, name: str, source: str, shapes: list[tuple[int, ...]]
) -> jax.Array:
    """Return the entry of a batch that a conditioner reads.

    Args:
      batch: the batch.
      name: the key.
      source: name of the conditioner.
      shapes: allowed shapes of the entry of one of the U conditions.

    Raises:
      UserError: the batch has no such entry, or it has another shape.
    """
    texts = (", ".join(map(str, ("U", *shape))) for shape in shapes)
    wanted = " or ".join(f"({text})" for text in texts)
    if name not in batch:
        raise UserError(
            f"config.condition.source={source} needs batch['{name}'] of shape "
            f"{wanted}, but the batch has none; give it, or use condition.source=none"
        )
    if batch[name].shape[1:] not in shapes:
        raise UserError(
            f"batch['{name}'] has shape {batch[name].shape}; expected {wanted}"
        )
    return batch[name]


def of_data(
    source: str,
    settings: Settings,
    slots: int,
    width: int,
    scale: Callable[[jax.Array], jax.Array],
) -> Conditioner:
    """A conditioner of vectors that come with the data, each (C,) or (S, C).

    Under `condition.standardise` the frozen leaves `standard/mean` and `standard/std`
    (C,) of the train split give each entry mean 0 and deviation 1. `scale` is what
    happens to the vectors otherwise.
    """
    standardise = settings.condition.standardise

    def init(key: Key) -> Params:
        del key
        return {"standard": blank_standard(width)} if standardise else {}

    def apply(params: Params, batch: Batch, key: Key | None = None) -> Conditions:
        del key
        x = entry(batch, "condition", source, [(width,), (slots, width)])
        x = standardised(x, params["standard"]) if standardise else scale(x)
        return Conditions(x[:, None] if x.ndim == 2 else x, batch.get("row"))

    return Conditioner(init, apply, {"condition": (width,)}, width)
