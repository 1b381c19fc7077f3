"""Laws that every calibrator keeps, numbers by hand, and their form as JSON."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import simulated

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.calibration.calibrators import affine, logistic, stepwise
from hypelora_jax.errors import UserError

NAMES = [name for name in calibrators.CALIBRATORS if name != "identity"]


def fit(name, logits, labels, weights=None):
    """Dirichlet at a fixed penalty: the search for one is tested on its own."""
    if name == "dirichlet":
        return affine.fit_dirichlet(logits, labels, weights, penalty=0.01)
    return calibrators.build(name).fit(logits, labels, weights)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_new_examples_are_better_calibrated(name, classes):
    state = fit(name, *simulated.split(classes, 2000))
    logits, labels = simulated.split(classes, 20_000, seed=1)
    before, after = calibrators.softmax(logits), calibrators.apply(state, logits)
    assert np.allclose(after.sum(axis=1), 1) and after.min() >= 0
    assert metrics.brier(after, labels) < metrics.brier(before, labels) - 0.02
    if name not in ("isotonic", "histogram"):  # which may give a probability of 0
        assert metrics.nll(after, labels) < metrics.nll(before, labels) - 0.05
    assert metrics.ece(after, labels) < 0.5 * metrics.ece(before, labels)
    if name != "temperature":  # which has no bias to find
        distance = np.abs(after - simulated.truth(logits)).mean()
        assert distance < (0.03 if classes == 2 else 0.07)


@pytest.mark.parametrize("name", NAMES)
def test_hard_splits_give_probabilities(name):
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(40, 3))
    anything = draw.integers(0, 3, 40)
    hard = {
        "huge": (logits * 1e4, anything),
        "tiny": (logits * 1e-4, anything),
        "separable": (logits, logits.argmax(axis=1)),
        "huge and separable": (logits * 1e4, logits.argmax(axis=1)),
        "constant": (np.full((40, 3), 1e4), anything),
        "one class": (logits, np.zeros(40, int)),
        "two of three classes": (logits, anything % 2),
        "one example": (logits[:1], anything[:1]),
        "two classes": (logits[:, :2] * 100, anything % 2),
    }
    for case, (z, y) in hard.items():
        state = fit(name, z, y)
        for new in (z, z[::-1] * 3, z * 0):
            probs = calibrators.apply(state, new)
            assert np.isfinite(probs).all(), case
            assert probs.min() >= 0 and np.allclose(probs.sum(axis=1), 1), case
        back = calibrators.from_json(calibrators.to_json(state))
        np.testing.assert_array_equal(
            calibrators.apply(back, z), calibrators.apply(state, z)
        )


@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_is_dropping_the_row_and_equal_weights_are_none(name):
    logits, labels = simulated.split(3, 90)
    weight = (np.arange(90) % 3 > 0) * 7.0
    dropped = fit(name, logits[weight > 0], labels[weight > 0])
    wanted = calibrators.apply(dropped, logits)
    held, labels = logits.copy(), labels.copy()
    held[weight == 0], labels[weight == 0] = np.nan, -1
    got = calibrators.apply(fit(name, held, labels, weight), logits)
    np.testing.assert_allclose(got, wanted, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_two_is_the_row_twice(name):
    if name in ("histogram", "platt_binner"):
        bins = {"bins": 1}  # more bins of equal mass may cut between the two copies
        build = {
            "histogram": stepwise.fit_histogram,
            "platt_binner": stepwise.fit_platt_binner,
        }
        fit_it = lambda *a: build[name](*a, **bins)  # noqa: E731
    else:
        fit_it = lambda *a: fit(name, *a)  # noqa: E731
    logits, labels = simulated.split(3, 60)
    twice = np.repeat(np.arange(60), 1 + (np.arange(60) % 2))
    wanted = calibrators.apply(fit_it(logits[twice], labels[twice]), logits)
    got = calibrators.apply(fit_it(logits, labels, 1.0 + (np.arange(60) % 2)), logits)
    np.testing.assert_allclose(got, wanted, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_jax_under_jit_equals_numpy(name, classes):
    logits, labels = simulated.split(classes, 200)
    state = fit(name, logits, labels)
    logits = logits.astype(np.float32)
    wanted = calibrators.apply(state, logits.astype(np.float64))
    assert wanted.dtype == np.float64
    got = jax.jit(lambda z: calibrators.apply(state, z))(jnp.asarray(logits))
    assert got.dtype == jnp.float32
    off = np.abs(np.asarray(got) - wanted).max(axis=1)
    # a probability that is an edge or knot may round to its other side
    assert np.quantile(off, 0.9) < 1e-5 and off.max() < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_classes_is_refused(name):
    state = fit(name, *simulated.split(3, 60))
    if name == "temperature":
        assert calibrators.apply(state, np.zeros((1, 2))).shape == (1, 2)
        return
    with pytest.raises(UserError, match="fitted for 3 classes, but the logits have 2"):
        calibrators.apply(state, np.zeros((1, 2)))


def test_no_label_is_refused():
    for name in NAMES[1:]:
        with pytest.raises(UserError, match="no example has a label"):
            calibrators.build(name).fit(np.zeros((0, 2)), np.zeros(0, int))


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="calibrator is 'magic'; expected one of"):
        calibrators.build("magic")


def test_identity_is_softmax():
    logits = np.log([[3.0, 1.0]])
    calibrator = calibrators.build("identity")
    state = calibrator.fit(logits, [0])
    np.testing.assert_allclose(calibrator.apply(state, logits), [[0.75, 0.25]])


def test_vector_and_dirichlet_are_never_worse_than_temperature_on_the_split():
    for seed in range(5):
        logits, labels = simulated.split(3, 30, seed, scale=10.0 ** (seed - 2))
        t = fit("temperature", logits, labels).nll_after
        for name in ("vector", "dirichlet"):
            probs = calibrators.apply(fit(name, logits, labels), logits)
            assert metrics.nll(probs, labels) <= t + 1e-9


def test_vector_by_hand():
    # logits that say nothing: the best biases give the shares of the classes
    state = fit("vector", np.zeros((8, 3)), np.array([0, 0, 0, 0, 1, 1, 2, 2]))
    got = calibrators.apply(state, np.zeros((1, 3)))
    np.testing.assert_allclose(got, [[0.5, 0.25, 0.25]], atol=1e-8)
    assert state.bias.sum() == pytest.approx(0)


def test_a_strong_penalty_leaves_dirichlet_a_diagonal():
    logits, labels = simulated.split(3, 500)
    state = affine.fit_dirichlet(logits, labels, penalty=1e6)
    off = state.weight - np.diag(np.diag(state.weight))
    assert np.abs(off).max() < 1e-5 and np.abs(state.bias).max() < 1e-5
    loose = affine.fit_dirichlet(logits, labels, penalty=1e-6)
    assert np.abs(loose.bias - loose.bias.mean()).max() > 0.2


def test_the_penalty_is_chosen_by_cross_validation():
    # the truth is within the model's reach, so many examples want little penalty
    many = affine.fit_dirichlet(*simulated.split(3, 1200))
    few = affine.fit_dirichlet(*simulated.split(3, 9))
    assert many.penalty < 0.1 and few.penalty == max(affine.PENALTIES)


def test_the_search_sees_true_slopes_and_curvatures(monkeypatch):
    seen = {}

    def spy(f, x, hessp, **options):
        seen.update(f=f, hessp=hessp, options=options)
        return scipy.optimize.OptimizeResult(x=x, fun=f(x)[0])

    logits, labels = simulated.split(3, 50)
    monkeypatch.setattr(logistic.scipy.optimize, "minimize", spy)
    affine.fit_dirichlet(logits, labels, penalty=0.1)
    f, hessp = seen["f"], seen["hessp"]
    x, v = np.random.default_rng(0).normal(size=(2, 12))
    step = 1e-5
    slope = (f(x + step * v)[0] - f(x - step * v)[0]) / (2 * step)
    assert f(x)[1] @ v == pytest.approx(slope, rel=1e-6)
    curvature = (f(x + step * v)[1] - f(x - step * v)[1]) / (2 * step)
    np.testing.assert_allclose(hessp(x, v), curvature, rtol=1e-5, atol=1e-9)


def test_cross_fitted_probabilities_are_those_of_the_other_folds():
    logits, labels = simulated.split(3, 300)
    state = fit("isotonic", logits, labels)
    own = calibrators.apply(state, logits)
    out = calibrators.cross_fitted(state, logits, labels)
    new = simulated.split(3, 5000, seed=1)
    honest = metrics.brier(calibrators.apply(state, new[0]), new[1])
    assert metrics.brier(own, labels) < honest - 0.02
    assert metrics.brier(out, labels) > metrics.brier(own, labels) + 0.02
    assert metrics.brier(out, labels) == pytest.approx(honest, abs=0.04)
    identity = calibrators.Identity()
    same = calibrators.cross_fitted(identity, logits, labels)
    np.testing.assert_array_equal(same, calibrators.softmax(logits))


def test_descriptions_are_short():
    logits, labels = simulated.split(3, 100)
    described = {
        name: calibrators.describe(fit(name, logits, labels)) for name in NAMES
    }
    assert described.pop("temperature").startswith("T = ")
    assert described == {
        "vector": "vector",
        "dirichlet": "Dirichlet",
        "isotonic": "isotonic",
        "histogram": "histogram, 10 bins",
        "beta": "beta",
        "platt_binner": "Platt-binner, 10 bins",
    }
    assert calibrators.describe(calibrators.Temperature(1.3127)) == "T = 1.31"
    assert calibrators.describe(calibrators.Identity()) == "none"
