"""Calibrators are those of scikit-learn, netcal, betacal and others.

Where a package stops its search early (betacal, uncertainty-calibration: lbfgs at
scikit-learn's default tolerance) the bar is its own error, and the exact number comes
from scikit-learn searched to the end or a loop over scipy's optimisers. dirichletcal
does not install on Python 3.11: its objective is written out here.
"""

import contextlib
import warnings

import calibration as uncertainty_calibration
import netcal.binning
import netcal.scaling
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import simulated
from betacal import BetaCalibration
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from hypelora_jax.calibration import calibrators
from hypelora_jax.calibration.calibrators import affine, monotone, stepwise

N = 800
NEW = {k: np.random.default_rng(9).normal(size=(500, k)) * 3 for k in (2, 3, 5)}


@contextlib.contextmanager
def quiet():
    """No warnings from the packages; betacal would switch off all later ones too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def logistic(x, y):
    """Unpenalised (multinomial) logistic regression, searched to the end."""
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
    with quiet():  # of the search's last steps
        return model.fit(x, y)


@pytest.mark.parametrize("classes", [2, 3])
def test_temperature(classes):
    logits, labels = simulated.split(classes, N)
    state = calibrators.build("temperature").fit(logits, labels)

    def loss(log_t):
        logp = scipy.special.log_softmax(logits * np.exp(-log_t), axis=1)
        return -np.mean([row[y] for row, y in zip(logp, labels, strict=True)])

    found = scipy.optimize.minimize_scalar(loss, (-1, 1), options={"xtol": 1e-12})
    assert state.temperature == pytest.approx(np.exp(found.x), abs=1e-6)
    assert state.nll_after == pytest.approx(found.fun, abs=1e-12)
    if classes == 3:  # netcal scales logit p(1) of two classes, as we do; float32
        peer = netcal.scaling.TemperatureScaling()
        with quiet():
            peer.fit(calibrators.softmax(logits), labels)
            wanted = peer.transform(calibrators.softmax(NEW[3]))
        got = calibrators.apply(state, scipy.special.log_softmax(NEW[3], axis=1))
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_vector_of_two_classes_is_logistic_regression_on_both_logits():
    logits, labels = simulated.split(2, N)
    got = affine.apply_vector(affine.fit_vector(logits, labels), NEW[2])
    wanted = logistic(logits, labels).predict_proba(NEW[2])
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_vector_of_several_classes():
    logits, labels = simulated.split(5, N)

    def loss(params):
        logp = scipy.special.log_softmax(params[:5] * logits + params[5:], axis=1)
        return -logp[np.arange(N), labels].mean()

    start = np.concatenate([np.ones(5), np.zeros(5)])
    options = {"gtol": 1e-9, "maxiter": 5000}
    found = scipy.optimize.minimize(loss, start, method="BFGS", options=options)
    got = affine.apply_vector(affine.fit_vector(logits, labels), NEW[5])
    wanted = scipy.special.softmax(found.x[:5] * NEW[5] + found.x[5:], axis=1)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_dirichlet_without_penalty_is_multinomial_regression_on_log_probabilities():
    logits, labels = simulated.split(3, N)
    state = affine.fit_dirichlet(logits, labels, penalty=1e-10)
    model = logistic(scipy.special.log_softmax(logits, axis=1), labels)
    wanted = model.predict_proba(scipy.special.log_softmax(NEW[3], axis=1))
    got = affine.apply_dirichlet(state, NEW[3])
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_dirichlet_minimises_the_objective_of_the_paper(penalty):
    logits, labels = simulated.split(3, N)
    logp = scipy.special.log_softmax(logits, axis=1)

    def loss(params):
        w, b = params[:9].reshape(3, 3), params[9:]
        z = np.stack([logp @ w[k] + b[k] for k in range(3)], axis=1)
        nll = scipy.special.logsumexp(z, axis=1) - z[np.arange(N), labels]
        off = sum(w[i, j] ** 2 for i in range(3) for j in range(3) if i != j)
        return nll.mean() + penalty * off / (3 * 2) + penalty * sum(b**2) / 3

    start = np.concatenate([np.eye(3).ravel(), np.zeros(3)])
    options = {"gtol": 1e-9, "maxiter": 5000}
    found = scipy.optimize.minimize(loss, start, method="BFGS", options=options)
    state = affine.fit_dirichlet(logits, labels, penalty=penalty)
    ours = loss(np.concatenate([state.weight.ravel(), state.bias]))
    assert ours <= found.fun + 1e-10
    np.testing.assert_allclose(state.weight.ravel(), found.x[:9], atol=1e-5)
    np.testing.assert_allclose(state.bias, found.x[9:], atol=1e-5)


def test_isotonic():
    logits, labels = simulated.split(2, N)
    logits = np.round(logits, 1)  # equal probabilities
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    model.fit(calibrators.softmax(logits)[:, 1], labels)
    state = monotone.fit_isotonic(logits, labels)
    new = np.concatenate([NEW[2], logits])
    got = monotone.apply_isotonic(state, new)[:, 1]
    # scikit-learn takes probabilities that differ by 1e-15 for equal ones
    wanted = model.predict(calibrators.softmax(new)[:, 1])
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["isotonic", "histogram"])
def test_one_vs_rest_is_netcals(name, classes):
    logits, labels = simulated.split(classes, N)
    peers = {
        "isotonic": netcal.binning.IsotonicRegression(),
        "histogram": netcal.binning.HistogramBinning(bins=10, equal_intervals=True),
    }
    probs, new = calibrators.softmax(logits), calibrators.softmax(NEW[classes])
    if classes == 2:
        probs, new = probs[:, 1], new[:, 1]
    peers[name].fit(probs, labels)
    wanted = peers[name].transform(new)
    state = {
        "isotonic": lambda: monotone.fit_isotonic(logits, labels),
        "histogram": lambda: stepwise.fit_histogram(logits, labels, equal_mass=False),
    }[name]()
    got = calibrators.apply(state, NEW[classes])
    got = got[:, 1] if classes == 2 else got
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_histogram_of_equal_mass_is_uncertainty_calibrations():
    logits, labels = simulated.split(2, N)
    peer = uncertainty_calibration.HistogramCalibrator(N, 10)
    peer.train_calibration(calibrators.softmax(logits)[:, 1], labels)
    wanted = peer.calibrate(calibrators.softmax(NEW[2])[:, 1])
    state = stepwise.fit_histogram(logits, labels)
    got = stepwise.apply_histogram(state, NEW[2])[:, 1]
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_platt_binner():
    logits, labels = simulated.split(2, N)
    state = stepwise.fit_platt_binner(logits, labels)
    model = logistic(np.diff(logits), labels)
    assert state.slope[0] == pytest.approx(model.coef_[0, 0], abs=1e-6)
    assert state.intercept[0] == pytest.approx(model.intercept_[0], abs=1e-6)
    peer = uncertainty_calibration.PlattBinnerCalibrator(N, 10)
    peer.train_calibration(calibrators.softmax(logits)[:, 1], labels)
    wanted = peer.calibrate(calibrators.softmax(NEW[2])[:, 1])
    got = stepwise.apply_platt_binner(state, NEW[2])[:, 1]
    assert np.quantile(np.abs(got - wanted), 0.98) < 2e-4  # edges differ by as much


def test_beta():
    logits, labels = simulated.split(2, N)
    p, new = calibrators.softmax(logits)[:, 1], calibrators.softmax(NEW[2])[:, 1]
    got = monotone.apply_beta(monotone.fit_beta(logits, labels), NEW[2])[:, 1]

    def features(p):
        return np.stack([np.log(p), -np.log1p(-p)], axis=1)

    model = logistic(features(p), labels)
    assert (model.coef_ > 0).all()  # so the constraint does not bind
    wanted = model.predict_proba(features(new))[:, 1]
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    peer = netcal.scaling.BetaCalibration()
    with quiet():
        peer.fit(p, labels)
        np.testing.assert_allclose(got, peer.transform(new), atol=1e-5)
        wanted = BetaCalibration("abm").fit(p, labels).predict(new)
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_beta_where_the_constraint_binds():
    """betacal leaves a negative coefficient there; L-BFGS-B with bounds does not."""
    logits, _ = simulated.split(2, N)
    p = calibrators.softmax(logits)[:, 1]
    draw = np.random.default_rng(1)
    labels = (draw.random(N) < 0.3 + 0.2 * (np.abs(p - 0.5) > 0.3)).astype(int)

    def loss(abc):
        z = abc[0] * np.log(p) - abc[1] * np.log1p(-p) + abc[2]
        return np.mean(np.logaddexp(0, np.where(labels == 1, -z, z)))

    bounds = [(0, None), (0, None), (None, None)]
    options = {"ftol": 1e-15, "gtol": 1e-10}
    found = scipy.optimize.minimize(
        loss, [1, 1, 0], method="L-BFGS-B", bounds=bounds, options=options
    )
    state = monotone.fit_beta(logits, labels)
    abc = np.array([state.a[0], state.b[0], state.c[0]])
    assert min(state.a[0], state.b[0]) == 0
    assert loss(abc) <= found.fun + 1e-10
    np.testing.assert_allclose(abc, found.x, atol=1e-4)


def one_vs_rest(logits, labels, new, fit):
    """Probabilities of new rows: a function a class, divided by their sum, by loops."""
    probs, new_probs = (calibrators.softmax(z) for z in (logits, new))
    functions = [
        fit(probs[:, k], (labels == k).astype(int)) for k in range(probs.shape[1])
    ]
    out = []
    for row in new_probs:
        values = [function(p) for function, p in zip(functions, row, strict=True)]
        out.append([value / sum(values) for value in values])
    return np.array(out)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_beta_of_three_classes():
    logits, labels = simulated.split(3, N)

    def fit(p, hit):
        model = logistic(np.stack([np.log(p), -np.log1p(-p)], axis=1), hit)
        (a, b), c = model.coef_[0], model.intercept_[0]
        assert a > 0 and b > 0  # so the constraint does not bind
        return lambda p: sigmoid(a * np.log(p) - b * np.log1p(-p) + c)

    got = monotone.apply_beta(monotone.fit_beta(logits, labels), NEW[3])
    wanted = one_vs_rest(logits, labels, NEW[3], fit)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_platt_binner_of_three_classes():
    logits, labels = simulated.split(3, N)

    def fit(p, hit):
        model = logistic(np.log(p / (1 - p))[:, None], hit)
        slope, c = model.coef_[0, 0], model.intercept_[0]

        def scaled(p):
            return sigmoid(slope * np.log(p / (1 - p)) + c)

        q = sorted(scaled(x) for x in p)
        size = N // 10
        edges = [(q[m * size - 1] + q[m * size]) / 2 for m in range(1, 10)]
        means = [sum(q[m * size : (m + 1) * size]) / size for m in range(10)]
        return lambda p: means[sum(scaled(p) > edge for edge in edges)]

    got = stepwise.apply_platt_binner(stepwise.fit_platt_binner(logits, labels), NEW[3])
    wanted = one_vs_rest(logits, labels, NEW[3], fit)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
