"""Steps that are not finite: found one step late, skipped bit by bit, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hypelora_jax.config.settings import MeshConfig
from hypelora_jax.errors import UserError
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train.divergence import Guard, all_finite
from hypelora_jax.train.optimizer import blend_alpha, optimizer
from hypelora_jax.train.state import init_state
from hypelora_jax.train.step import build_step

YES, NO = jnp.asarray(True), jnp.asarray(False)


def test_a_step_is_judged_when_the_next_one_is_added():
    guard = Guard(0, 0, lambda: 4)
    guard.add(5, ["a", "b"], NO)
    with pytest.raises(
        UserError, match=r"step 5 \(ids a, b\); .* checkpoint is step 4"
    ):
        guard.add(6, ["c"], YES)


def test_so_many_may_be_skipped_and_no_more():
    guard = Guard(3, 1, lambda: None)
    guard.add(1, [], NO)
    assert not guard.settle() and guard.skipped == 2
    guard.add(2, [], NO)
    guard.add(3, [], YES)
    assert guard.settle() and guard.skipped == 3
    guard.add(4, [], NO)
    with pytest.raises(UserError, match="no checkpoint yet"):
        guard.settle()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_all_finite(bad):
    fine = {"a": jnp.ones(3), "b": {"c": jnp.zeros((2, 2))}}
    assert all_finite(fine)
    fine["b"]["c"] = fine["b"]["c"].at[1, 1].set(bad)
    assert not all_finite(fine)


@pytest.mark.parametrize("skip", [True, False])
def test_a_skipped_step_leaves_every_bit_but_its_number(skip):
    config = tiny.settings("lora")
    model = tiny.model(config)
    trainable, frozen = model.split(tiny.params(config, model))
    tx, alpha = optimizer(config.optim, 4), blend_alpha(config.blend, 4, 1)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step = build_step(model, tx, alpha, mesh, skip_nonfinite=skip)
    state, info = step(
        init_state(trainable, tx, jax.random.key(0)), frozen, tiny.batch()
    )
    assert info["finite"]
    before = [np.array(x) for x in jax.tree.leaves((state.params, state.opt_state))]
    bad = tiny.batch()
    bad["weight"] = bad["weight"].at[1].set(jnp.nan)
    state, info = step(state, frozen, bad)
    assert not info["finite"] and int(state.step) == 2
    after = jax.tree.leaves((state.params, state.opt_state))
    pairs = zip(before, after, strict=True)
    assert all(a.tobytes() == np.asarray(b).tobytes() for a, b in pairs) == skip
