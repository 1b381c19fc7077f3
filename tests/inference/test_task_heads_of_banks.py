"""The head that a bank has for one task of a set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hypelora_jax import families
from hypelora_jax.config.settings import HeadConfig
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.inference.task_adapters import _head
from hypelora_jax.types import ABSENT

TASK = unnamed(3)._replace(tasks=3, classes=(3, 2, 3))


@pytest.mark.parametrize("kind", ["per_task", "separate"])
def test_the_head_of_a_task_answers_as_that_of_the_set(kind):
    head = families.head(HeadConfig(kind=kind), tiny.CONFIG, TASK, dtype="float32")
    params = tiny.shaken(head.init(jax.random.key(0)), by=0.1)
    plain = families.head(HeadConfig(), tiny.CONFIG, TASK, dtype="float32")
    hidden = jax.random.normal(jax.random.key(1), (4, 2, tiny.CONFIG.width))
    for k in range(3):
        own = _head(8, TASK.classes, params, {"task": jnp.int32(k)})
        got = np.asarray(plain.apply(own, hidden, {}))
        wanted = head.apply(params, hidden, {"task": jnp.full(4, k, jnp.int32)})
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
        assert (got[:, 2] == ABSENT).all() == (k == 1)
