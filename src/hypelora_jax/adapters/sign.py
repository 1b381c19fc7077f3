"""The sign of a condition: a factor of the logits, which is negative for "not".

It travels with the factors of an adapter, as an entry beside those of the modules, so
that it is differentiated, cut and pinned like them.
"""

import jax
import jax.numpy as jnp

from hypelora_jax.types import ABSENT, Adapter, Conditions, Lora, Params

NAME = "sign"


def joined(factors: Lora, found: Conditions | None) -> Lora:
    """Return placed factors with the signs of their conditions, if these have signs.

    They are an array (1, U, 1, 1), or (1, 1, 1) of one condition.
    """
    if found is None or found.sign_U is None:
        return factors
    shape = (1, 1, 1) if len(found.sign_U) == 1 else (1, -1, 1, 1)
    return {**factors, NAME: {"b": found.sign_U.reshape(shape)}}


def without(factors: Lora) -> Lora:
    """Return the factors of the modules."""
    return {m: x for m, x in factors.items() if m != NAME}


def signed(logits_BY: jax.Array, adapter: Adapter) -> jax.Array:
    """Logits times the sign of each row's condition; those of absent classes stay."""
    if NAME not in adapter.factors:
        return logits_BY
    sign_U, row_B = adapter.factors[NAME]["b"].reshape(-1), adapter.row_B
    if row_B is None:
        sign_B = jnp.repeat(sign_U, len(logits_BY) // len(sign_U))
    else:
        sign_B = sign_U[row_B]
    sign_B = sign_B.reshape(-1, *(1,) * (logits_BY.ndim - 1))  # of a regression: (B,)
    return jnp.where(logits_BY == ABSENT, ABSENT, sign_B * logits_BY)


def of_head(head: Params, found: Conditions | None) -> Params:
    """Return the head whose logits have the sign of the one condition, if it has one.

    Logits are linear in the head's last layer, which is `out`, or `state` of a head
    that compares with names.
    """
    if found is None or found.sign_U is None:
        return head
    last, sign = "out" if "out" in head else "state", found.sign_U[0]
    return {**head, last: jax.tree.map(lambda x: sign * x, head[last])}
