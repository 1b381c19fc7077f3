"""Attention in one kernel, which keeps no probabilities, and where it is used.

On an NVIDIA GPU it is cuDNN's kernel, through `jax.nn.dot_product_attention`; on a TPU
it is the flash attention (Dao et al. 2022) of `jax.experimental.pallas.ops.tpu`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hypelora_jax.errors import UserError
from hypelora_jax.families.blocks.dense import wide
from hypelora_jax.sharding.rules import Place, by_rows_and_heads

LONG = 512  # tokens; from here on `auto` takes the kernel on TPU
CAPABILITY = 8.0  # of an NVIDIA GPU: Ampere, the first that cuDNN's kernel runs on
LANES = 128  # of a TPU; its kernel takes lengths that are a multiple of them
BLOCK = 512  # tokens at most that the TPU's kernel holds at a time
KERNELS = {"gpu": "cudnn", "tpu": "flash"}
HALF = ("bfloat16", "float16")
DTYPES = {"cudnn": HALF, "flash": ("float32", "bfloat16")}


class Call(NamedTuple):
    """What is known of a call of attention when it is traced."""

    dtype: str
    rows: int
    queries: int
    tokens: int
    heads: int
    width: int  # of one head
    dropout: float = 0.0  # rate in force; 0 in inference
    by_query: bool = False  # whether each query has its own mask, as in packed rows


def choice(asked: str, where: Place, call: Call) -> str:
    """Return the implementation of a call: xla, cudnn or flash.

    `asked` is config.model.attention. The first line that fits decides:

    | asked | where | call | implementation |
    |---|---|---|---|
    | xla | anywhere | any | xla |
    | auto | CPU | any | xla |
    | auto | anywhere | dropout in force, or a mask for each query | xla |
    | auto | GPU | dtype float32 or float64 | xla |
    | auto | TPU | fewer than 512 tokens, or devices but no mesh | xla |
    | auto | GPU or TPU | head width or mesh that the kernel does not take | xla |
    | fused | anywhere | what gives xla above, but for short rows | UserError |
    | auto, fused | anywhere | fewer queries than tokens | xla |
    | auto, fused | GPU | any other | cudnn |
    | auto, fused | TPU | any other | flash |

    Raises:
      UserError: `asked` is fused, and the kernel cannot compute the call.
    """
    if asked == "xla":
        return "xla"
    obstacle = _obstacle(where, call)
    if obstacle is not None and asked == "fused":
        found, expected = obstacle
        raise UserError(
            f"config.model.attention is fused, but {found}; expected {expected}, or "
            "model.attention=auto"
        )
    on_tpu = where.platform == "tpu"
    useful = asked == "fused" or not on_tpu or (where.known and call.tokens >= LONG)
    if obstacle is not None or not useful or call.queries < call.tokens:
        return "xla"
    return KERNELS[where.platform]


def _obstacle(where: Place, call: Call) -> tuple[str, str] | None:
    """Return why no kernel computes a call, as (found, expected), or None."""
    kernel = KERNELS.get(where.platform)
    if kernel is None:
        return f"the device is a {where.platform.upper()}", "an NVIDIA GPU or a TPU"
    if kernel == "cudnn" and where.capability < CAPABILITY:
        return (
            f"the GPU has the compute capability {where.capability}",
            f"an NVIDIA GPU of at least {CAPABILITY}",
        )
    if call.dropout:
        return (
            f"the rate of attention dropout is {call.dropout}, and the kernel has none",
            "model.attention_dropout=0",
        )
    if call.by_query:
        return "rows are packed", "data.packing=false"
    if call.dtype not in DTYPES[kernel]:
        return f"model.dtype is {call.dtype} on this device", "model.dtype=bfloat16"
    if not _takes(kernel, call.width):
        sizes = "multiples of 8 up to 128" if kernel == "cudnn" else "up to 128"
        return f"a head of this model has the width {call.width}", f"widths {sizes}"
    if call.rows % where.rows or call.heads % where.heads:
        return (
            f"the mesh cuts {call.rows} rows into {where.rows} parts and {call.heads} "
            f"heads into {where.heads}",
            "mesh sizes that divide them",
        )
    return None


def _takes(kernel: str, width: int) -> bool:
    return width <= 128 and (kernel == "flash" or width % 8 == 0)


def fused(
    kernel: str, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, heads: int
) -> jax.Array:
    """Attend over tokens where `mask` is True, without dropout.

    As in `attention`, a row without tokens gets the mean of its values, and only these
    have a gradient then.

    Args:
      kernel: cudnn or flash, as `choice` returns it.
      q: scaled queries (B, T, D), or (T, D).
      k: keys, of the same shape.
      v: values, of the same shape.
      mask: bool (B, T), or (T,).
      heads: H.

    Returns:
      What each query attends to, in the shape of q.
    """
    if q.ndim == 2:
        return fused(kernel, q[None], k[None], v[None], mask[None], heads)[0]
    by_head = [x.reshape(*x.shape[:-1], heads, -1) for x in (q, k, v)]
    attend = by_rows_and_heads(_ATTEND[kernel])
    out = attend(*by_head, mask).reshape(q.shape)
    mean = jnp.mean(v, axis=1, keepdims=True, dtype=wide(v.dtype)).astype(v.dtype)
    some = jnp.any(mask, axis=1)[:, None, None]
    return jnp.where(some, out, jnp.broadcast_to(mean, out.shape))


def _cudnn(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """Attend with cuDNN, whose padding mask is a number of tokens at the beginning.

    Its other mask is a bias (B, 1, T, T), for which it also computes a gradient.
    Attention does not depend on the order of its keys, so that those with a token come
    first here. JAX takes only even numbers of tokens.
    """
    tokens = q_BTHK.shape[1]
    q_BTHK, k_BTHK, v_BTHK, mask_BT = _padded(2, q_BTHK, k_BTHK, v_BTHK, mask_BT)
    order_BT = jnp.argsort(~mask_BT, axis=1, stable=True)
    k_BTHK, v_BTHK = _take(k_BTHK, order_BT), _take(v_BTHK, order_BT)
    count_B = jnp.maximum(jnp.sum(mask_BT, axis=1, dtype=jnp.int32), 1)
    out_BTHK = jax.nn.dot_product_attention(
        q_BTHK,
        k_BTHK,
        v_BTHK,
        scale=1.0,
        key_value_seq_lengths=count_B,
        implementation="cudnn",
    )
    return out_BTHK[:, :tokens]


def _padded(multiple: int, *arrays: jax.Array) -> list[jax.Array]:
    """Pad axis 1, of tokens, with zeros to a multiple."""
    more = -arrays[0].shape[1] % multiple
    ends = [(0, 0), (0, more), (0, 0), (0, 0)]
    return [jnp.pad(x, ends[: x.ndim]) for x in arrays]


@jax.custom_vjp
def _take(x_BTHK: jax.Array, order_BT: jax.Array) -> jax.Array:
    """Reorder the tokens of each row; the gradient is a gather, too, and no scatter."""
    return jnp.take_along_axis(x_BTHK, order_BT[:, :, None, None], axis=1)


def _take_forward(
    x_BTHK: jax.Array, order_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _take(x_BTHK, order_BT), order_BT


def _take_backward(order_BT: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return _take(gradient, jnp.argsort(order_BT, axis=1)), None


_take.defvjp(_take_forward, _take_backward)


def _flash(
    q_BTHK: jax.Array, k_BTHK: jax.Array, v_BTHK: jax.Array, mask_BT: jax.Array
) -> jax.Array:
    """Attend with the TPU's kernel; tokens are padded to a multiple of its lanes.

    A query sees the keys that are in its segment: 1, where there is a token.
    """
    # local, because it takes a second that only a TPU needs
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu

    tokens = q_BTHK.shape[1]
    *by_token, mask_BT = _padded(LANES, q_BTHK, k_BTHK, v_BTHK, mask_BT)
    key_BT, length = mask_BT.astype(jnp.int32), mask_BT.shape[1]
    size = next(n for n in range(BLOCK, 0, -LANES) if length % n == 0)
    out_BHTK = tpu.flash_attention(
        *(x.swapaxes(1, 2) for x in by_token),
        segment_ids=tpu.SegmentIds(jnp.ones_like(key_BT), key_BT),
        block_sizes=_blocks(tpu.BlockSizes, size),
    )
    return out_BHTK.swapaxes(1, 2)[:, :tokens]


def _blocks(sizes: Callable, size: int) -> object:
    """Return sizes of all blocks of the TPU's kernel, forward and backward."""
    forward = {"block_q": size, "block_k_major": size, "block_k": size, "block_b": 1}
    of_kv = ("block_q_major_dkv", "block_k_major_dkv", "block_k_dkv", "block_q_dkv")
    of_q = ("block_k_major_dq", "block_k_dq", "block_q_dq")
    return sizes(**forward, **dict.fromkeys((*of_kv, *of_q), size))


_ATTEND = {"cudnn": _cudnn, "flash": _flash}
