"""Adapters of every source: groups, rows, order, gradients, draws of an ensemble."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sources
import tiny

from hypelora_jax import trees
from hypelora_jax.keys import named_keys
from hypelora_jax.train import ensembles
from hypelora_jax.train.step import gradients

ALPHA, ROWS, K = jnp.zeros(()), 6, 3
ROW = np.array([2, 0, 1, 1, 0, 2], np.int32)
KEYS = named_keys(jax.random.key(0), 0, "adapt", "rows")


def logits(built, params, batch, key=None):
    return np.asarray(tiny.predict(built, params, sources.on_device(batch), ALPHA, key))


def taken(batch, index):
    return {name: np.asarray(x)[np.asarray(index)] for name, x in batch.items()}


@pytest.mark.parametrize("source", sources.CASES)
def test_groups_indices_and_single_rows_agree(source):
    built, params = sources.ready(sources.settings(source))
    rows, given = tiny.batch(ROWS), sources.entries(source, 3)
    grouped = logits(built, params, rows | given)
    in_order = np.repeat(np.arange(3, dtype=np.int32), 2)
    indexed = logits(built, params, rows | given | {"row": in_order})
    np.testing.assert_allclose(indexed, grouped, atol=1e-5)
    mixed = logits(built, params, rows | given | {"row": ROW})
    for out, at in ((grouped, in_order), (mixed, ROW)):
        for b in range(ROWS):
            own = taken(rows, [b]) | taken(given, [at[b]])
            np.testing.assert_allclose(
                out[b : b + 1], logits(built, params, own), atol=1e-5
            )
    # each row with a condition of its own
    own = logits(built, params, rows | taken(given, ROW))
    np.testing.assert_allclose(own, mixed, atol=1e-5)
    if given:
        assert np.abs(mixed - grouped).max() > 1e-3, "else the condition does nothing"


@pytest.mark.parametrize("source", sources.CASES)
def test_permuting_conditions_permutes_outputs(source):
    built, params = sources.ready(sources.settings(source))
    rows, given = tiny.batch(ROWS), sources.entries(source, 3)
    order = np.array([2, 0, 1])
    at = (order[:, None] * 2 + np.arange(2)).reshape(-1)  # rows of the groups
    out = logits(built, params, rows | given)
    moved = logits(built, params, taken(rows, at) | taken(given, order))
    np.testing.assert_allclose(moved, out[at], atol=1e-5)


@pytest.mark.parametrize("source", sources.CASES)
def test_without_a_key_nothing_is_drawn(source):
    condition = {"jitter": 0.3, "dropout": 0.3}
    built, params = sources.ready(sources.settings(source, condition=condition))
    batch = sources.on_device(tiny.batch(ROWS) | sources.entries(source, 3))
    adapt = jax.jit(built.adapt)
    one, two = (adapt(params, batch, ALPHA) for _ in range(2))
    same = jax.tree.map(lambda x, y: bool((x == y).all()), one, two)
    assert jax.tree.all(same)
    drawn = adapt(params, batch, ALPHA, jax.random.key(0)).factors["q"]["b"]
    assert np.abs(drawn - one.factors["q"]["b"]).max() > 1e-4


def after_steps(config, batch, steps=2):
    """Gradients by path at each of the first steps of gradient descent."""
    built, params = sources.ready(config, shake=False)
    trainable, frozen = built.split(params)
    run, out = jax.jit(gradients(built, 1, deterministic=False)), []
    for _ in range(steps):
        _, _, gradient = run(trainable, frozen, batch, ALPHA, KEYS)
        out.append({p: np.asarray(g) for p, g in trees.flatten(gradient).items()})
        trainable = jax.tree.map(lambda x, g: x - 0.5 * g, trainable, gradient)
    return built, params, out


@pytest.mark.parametrize(
    ("source", "method", "sections"),
    [
        *((source, "hyper_mlp", {}) for source in sources.EVERY),
        ("set", "hyper_mlp", {"condition": {"pooling": "attention"}}),
        ("text+task", "hyper_mlp", {"condition": {"join": "sum"}}),
        ("text", "hyper_mlp", {"hyper": {"cond": "layer_module"}}),
        pytest.param(
            *("task", "hyper_transformer", {"hyper": {"cond": "layer_module"}}),
            marks=pytest.mark.soak,
        ),
    ],
)
def test_after_one_step_every_leaf_has_a_gradient(source, method, sections):
    config = sources.settings(source, method, **sections)
    batch = tiny.batch(ROWS) | sources.entries(source, 3)
    built, params, (first, second) = after_steps(config, sources.on_device(batch))
    factors = built.adapt(params, sources.on_device(batch), ALPHA).factors
    assert not any(np.any(own["b"]) for own in factors.values()), "zero delta"
    of_network = {p for p in first if p.split("/")[0] in ("cond", "hyper")}
    heads_of_b = {p for p in of_network if p.startswith("hyper/out/") and "/b/" in p}
    assert {p for p in of_network if first[p].any()} == heads_of_b
    silent = {p for p in of_network if not second[p].any()}
    assert silent == set() and any(p.startswith("cond/") for p in of_network)


# Hyper-ensembles of noise


def ensemble(**sections):
    config = sources.settings("noise", **sections)
    uncertainty = dataclasses.replace(
        config.uncertainty, kind="hyper_ensemble", samples=K
    )
    return dataclasses.replace(config, uncertainty=uncertainty)


def test_members_of_a_noise_ensemble_are_its_stored_draws():
    built, params = sources.ready(ensemble())
    trainable, frozen = built.split(params)
    draws = frozen["cond"]["noise"]["draws"]
    assert draws.shape == (K, sources.WIDTH)
    assert trainable["cond"]["embedding"].ndim == 2, "members share the sites"
    plain = sources.model(sources.settings("noise"))
    shapes = jax.eval_shape(plain.init, jax.random.key(0), tiny.base())
    rows = tiny.batch(ROWS)
    row = np.arange(ROWS, dtype=np.int32) % K
    dealt = logits(built, params, rows | {"row": row})
    for k in range(K):
        own, rest = ensembles.member(ensemble(), trainable, frozen, k)
        one = {**rest, **own}
        one["cond"] = {**rest["cond"], **own["cond"]}
        same = jax.tree.map(lambda x, s: x.shape == s.shape, one, dict(shapes))
        assert jax.tree.all(same)
        np.testing.assert_array_equal(rest["cond"]["noise"]["draws"][0], draws[k])
        alone = logits(built, one, rows)
        np.testing.assert_allclose(dealt[row == k], alone[row == k], atol=1e-5)
    assert ensembles.temperatures(ensemble(), trainable).tolist() == [1] * K


def test_a_step_of_a_noise_ensemble_draws_a_condition_for_each_member():
    built, params = sources.ready(ensemble())
    batch = sources.on_device(tiny.batch(ROWS))
    batch = ensembles.dealt(batch, jnp.asarray(1), K)
    adapt = jax.jit(built.adapt)
    one, two = (adapt(params, batch, ALPHA, jax.random.key(i)) for i in (0, 1))
    assert one.factors["q"]["b"].shape[1] == K
    np.testing.assert_array_equal(one.row_B, batch["row"])
    assert np.abs(one.factors["q"]["b"] - two.factors["q"]["b"]).max() > 1e-4
    trainable, frozen = built.split(params)
    run = jax.jit(gradients(built, 2, deterministic=False))
    _, _, gradient = run(trainable, frozen, batch, ALPHA, KEYS)
    assert "noise" not in gradient["cond"]
