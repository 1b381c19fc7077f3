"""Rows that lack a class: they are calibrated like rows of their own classes alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simulated

from hypelora_jax.calibration import arrays, calibrators, metrics
from hypelora_jax.calibration.calibrators import affine
from hypelora_jax.types import ABSENT

NAMES = list(calibrators.CALIBRATORS)


def fit(name, logits, labels, penalty=1e-3):
    """Dirichlet at a fixed penalty: the search for one is tested on its own."""
    if name == "dirichlet":
        return affine.fit_dirichlet(logits, labels, penalty=penalty)
    return calibrators.build(name).fit(logits, labels)


def mixed(n=1500, seed=0):
    """Rows with 4 classes and rows with 2, half of each; where a row lacks a class."""
    (four, y_four), (two, y_two) = (
        simulated.split(classes, n, seed) for classes in (4, 2)
    )
    both = np.full((n, 4), ABSENT)
    both[:, :2] = two
    order = np.random.default_rng(seed).permutation(2 * n)
    logits = np.concatenate([four, both])[order]
    return logits, np.concatenate([y_four, y_two])[order], logits == ABSENT


@pytest.mark.parametrize("name", NAMES)
def test_the_classes_that_a_row_lacks_have_probability_0(name):
    logits, labels, absent = mixed()
    state = fit(name, logits, labels)
    new, y, lacking = mixed(seed=1)
    probs = calibrators.apply(state, new)
    assert (probs[lacking] == 0).all() and np.isfinite(probs).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    # an average over members may move the logit of such a class
    moved = np.where(lacking, 0.6 * ABSENT, new)
    np.testing.assert_array_equal(calibrators.apply(state, moved), probs)
    before = calibrators.softmax(new)
    if name != "identity":  # two classes gain as four do
        for rows in (lacking.any(axis=1), ~lacking.any(axis=1)):
            gain = [metrics.brier(p[rows], y[rows]) for p in (before, probs)]
            assert gain[1] < gain[0] - 0.02, gain
    got = jax.jit(lambda z: calibrators.apply(state, z))(jnp.asarray(new, jnp.float32))
    assert (np.asarray(got)[lacking] == 0).all()
    off = np.abs(np.asarray(got) - probs).max(axis=1)
    assert np.quantile(off, 0.9) < 1e-5, "the edges of steps apart"


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_no_row_has_is_no_class(name):
    logits, labels = simulated.split(3, 400)
    wider = np.concatenate([logits, np.full((400, 1), ABSENT)], axis=1)
    alone, state = (fit(name, z, labels, penalty=1e-9) for z in (logits, wider))
    wanted, got = calibrators.apply(alone, logits), calibrators.apply(state, wider)
    assert (got[:, 3] == 0).all()
    np.testing.assert_allclose(got[:, :3], wanted, atol=1e-5)
    # a task may have it that no row was of: it keeps about the probability it had
    new = np.concatenate([logits, logits[:, :1]], axis=1)
    found = calibrators.apply(state, new)
    assert np.isfinite(found).all() and found[:, 3].max() > 0.3
    assert np.corrcoef(found[:, 3], calibrators.softmax(new)[:, 3])[0, 1] > 0.7


@pytest.mark.parametrize("name", NAMES)
def test_a_label_that_its_row_lacks_teaches_nothing(name):
    logits, labels, absent = mixed(100)
    at = np.flatnonzero(absent.any(axis=1))[:3]
    wrong = labels.copy()
    wrong[at] = 3
    state = fit(name, logits, wrong)
    if name not in ("temperature", "identity"):
        rest = np.delete(np.arange(200), at)
        kept = fit(name, logits[rest], labels[rest])
        wanted = calibrators.apply(kept, logits)
        np.testing.assert_allclose(calibrators.apply(state, logits), wanted, atol=1e-7)
    assert np.isfinite(calibrators.apply(state, logits)).all()


def test_every_row_has_a_class_whatever_the_size_of_its_logits():
    logits = np.array([[-1e9, -1e9 + 1], [3e5, -3e5], [1e30, 0], [0, ABSENT / 1e3]])
    wanted = [[True, True], [True, False], [True, False], [True, False]]
    assert arrays.present(logits).tolist() == wanted
    narrow = arrays.present(jnp.asarray(logits, jnp.float32))
    assert narrow[1:].tolist() == wanted[1:] and narrow[0].any()
