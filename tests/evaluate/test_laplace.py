"""The last-layer posterior against plain float64 loops, and its limits."""

import numpy as np
import pytest
import scipy.special

from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import laplace
from hypelora_jax.run.paths import Run


def problem(n=30, width=4, classes=3, seed=0):
    draw = np.random.default_rng(seed)
    x, held = np.tanh(draw.normal(size=(2, n, width)))
    mean_FY = draw.normal(size=(width + 1, classes))
    return laplace.with_one(x), mean_FY, laplace.with_one(held)


def labels(seed=0):
    """Classes of the held-out rows: the model is right, but too sure of it."""
    _, mean_FY, held = problem(seed=seed)
    odds = 0.6 * held @ mean_FY + np.random.default_rng(1).gumbel(size=(30, 3))
    return odds.argmax(axis=1)


def loop_hessian(phi_NF, mean_FY):
    """Sum of Kronecker products, one row at a time."""
    total = 0
    for phi in phi_NF:
        z = phi @ mean_FY
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        total = total + np.kron(np.outer(phi, phi), np.diag(p) - np.outer(p, p))
    return total


def test_hessian_equals_the_sum_of_kronecker_products():
    phi, mean_FY, _ = problem()
    got = laplace.hessian(phi, mean_FY).reshape(mean_FY.size, -1)
    np.testing.assert_allclose(got, loop_hessian(phi, mean_FY), atol=1e-12)


def test_hessian_is_the_second_difference_of_the_likelihood():
    phi, mean_FY, _ = problem(width=2)
    label, h, size = labels(), 1e-4, mean_FY.size

    def nll(flat):
        logp = scipy.special.log_softmax(phi @ flat.reshape(mean_FY.shape), axis=1)
        return -logp[np.arange(len(label)), label].sum()

    steps, flat = h * np.eye(size), mean_FY.ravel()
    wanted = [
        [
            nll(flat + a + b)
            - nll(flat + a - b)
            - nll(flat - a + b)
            + nll(flat - a - b)
            for b in steps
        ]
        for a in steps
    ]
    got = laplace.hessian(phi, mean_FY).reshape(size, size)
    np.testing.assert_allclose(got, np.array(wanted) / (4 * h * h), atol=1e-4)


@pytest.mark.parametrize("link", ["mean_field", "probit"])
def test_posterior_and_its_predictions_equal_the_closed_form(link):
    phi, mean_FY, held = problem()
    state = laplace.fit(phi, mean_FY, held, labels(), link=link)
    size = mean_FY.size
    wanted = np.linalg.inv(loop_hessian(phi, mean_FY) + state.precision * np.eye(size))
    got = state.cov_FYFY.reshape(size, size)
    np.testing.assert_allclose(got, wanted, atol=1e-9 * np.abs(wanted).max())
    mean_NY, cov_NYY = laplace.moments(state, held)
    logits_NY = laplace.predict(state, held[:, :-1], link)
    probs = scipy.special.softmax(logits_NY, axis=1)
    for n, x in enumerate(held):
        jacobian = np.kron(x[None, :], np.eye(3))  # (Y, F Y)
        np.testing.assert_allclose(mean_NY[n], jacobian @ mean_FY.ravel(), atol=1e-12)
        cov = jacobian @ wanted @ jacobian.T
        np.testing.assert_allclose(cov_NYY[n], cov, atol=1e-9 * np.abs(cov).max())
        if link == "probit":
            wanted_p = np.exp(mean_NY[n] / np.sqrt(1 + np.pi * np.diag(cov) / 8))
        else:
            wanted_p = [loop_mean_field(mean_NY[n], cov, c) for c in range(3)]
        wanted_p = np.array(wanted_p) / np.sum(wanted_p)
        np.testing.assert_allclose(probs[n], wanted_p, atol=1e-7)


def loop_mean_field(mean, cov, c):
    total = 0.0
    for j in range(len(mean)):
        unit = np.zeros(len(mean))
        unit[j] += 1
        unit[c] -= 1
        total += np.exp(mean @ unit / np.sqrt(1 + np.pi / 8 * (unit @ cov @ unit)))
    return 1 / total


def test_two_classes_by_hand_and_against_an_integral():
    # difference of the logits: mean 1, variance 1 + 3 - 2 * 0.5 = 3
    mean_NY, cov_NYY = np.array([[0.0, 1.0]]), np.array([[[1.0, 0.5], [0.5, 3.0]]])
    got = scipy.special.softmax(laplace.mean_field(mean_NY, cov_NYY), axis=1)[0, 1]
    assert got == pytest.approx(scipy.special.expit(1 / np.sqrt(1 + np.pi / 8 * 3)))
    x = np.linspace(-20, 20, 100_001)
    normal = np.exp(-((x - 1) ** 2) / 6) / np.sqrt(6 * np.pi)
    integral = np.sum(normal * scipy.special.expit(x)) * (x[1] - x[0])
    assert got == pytest.approx(integral, abs=0.01)


def test_a_shift_of_all_logits_that_the_prior_leaves_open_changes_nothing():
    mean_NY, cov_NYY = np.array([[0.0, 1.0, 3.0]]), 0.1 * np.eye(3)[None]
    shifted = cov_NYY + 1e4
    wanted = laplace.mean_field(mean_NY, cov_NYY)
    np.testing.assert_allclose(laplace.mean_field(mean_NY, shifted), wanted, atol=1e-9)
    flat = scipy.special.softmax(laplace.probit(mean_NY, shifted))
    np.testing.assert_allclose(flat, 1 / 3, atol=0.02)  # the other link's weakness


def test_precision_is_the_best_on_the_held_out_rows(monkeypatch):
    phi, mean_FY, held = problem(seed=3)
    label = labels(seed=3)

    def nll(tau):
        monkeypatch.setattr(laplace, "PRECISIONS", np.array([tau]))
        logits = laplace.predict(laplace.fit(phi, mean_FY, held, label), held[:, :-1])
        logp = scipy.special.log_softmax(logits, axis=1)
        return -logp[np.arange(30), label].mean()

    grid = np.logspace(-3, 5, 9)
    losses = [nll(tau) for tau in grid]
    monkeypatch.setattr(laplace, "PRECISIONS", grid)
    chosen = laplace.fit(phi, mean_FY, held, label).precision
    assert chosen == grid[int(np.argmin(losses))] and chosen not in (grid[0], grid[-1])


def test_a_sure_prior_leaves_the_prediction_as_it_was(monkeypatch):
    phi, mean_FY, held = problem()
    monkeypatch.setattr(laplace, "PRECISIONS", np.array([1e12]))
    state = laplace.fit(phi, mean_FY, held, labels())
    got = scipy.special.softmax(laplace.predict(state, held[:, :-1]), axis=1)
    wanted = scipy.special.softmax(held @ mean_FY, axis=1)
    np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_a_training_temperature_divides_the_logits():
    phi, mean_FY, held = problem()
    half = laplace.fit(phi / 2, mean_FY, held / 2, labels(), temperature=2.0)
    same = laplace.fit(phi, mean_FY / 2, held, labels())
    # at temperature 2 the model is that of half the kernel; a weight of it is twice as
    # wide, so its prior is four times as weak for the same posterior of the logits
    assert half.precision == pytest.approx(same.precision / 4, rel=0.3)
    np.testing.assert_allclose(
        laplace.moments(half, held / 2)[0], laplace.moments(same, held)[0], atol=1e-12
    )
    raw = laplace.predict(half, held[:, :-1])
    np.testing.assert_allclose(
        np.argmax(raw, axis=1), np.argmax(held @ mean_FY, axis=1)
    )


def test_draws_have_the_posteriors_moments():
    phi, mean_FY, held = problem()
    state = laplace.fit(phi, mean_FY, held, labels())
    few, k = held[:3], 20_000
    drawn_KNY = laplace.draw(0, state, few[:, :-1], k)
    mean_NY, cov_NYY = laplace.moments(state, few)
    for n in range(3):
        sd = np.sqrt(np.diag(cov_NYY[n]))
        error = np.abs(drawn_KNY[:, n].mean(axis=0) - mean_NY[n])
        assert np.all(error < 4 * sd / np.sqrt(k))
        spread = np.cov(drawn_KNY[:, n].T) / np.outer(sd, sd)
        np.testing.assert_allclose(spread, cov_NYY[n] / np.outer(sd, sd), atol=0.05)
    again = laplace.draw(0, state, few[:1, :-1], k)
    np.testing.assert_allclose(again[:, 0], drawn_KNY[:, 0], atol=1e-12)


def test_a_last_layer_too_wide_is_refused():
    with pytest.raises(UserError, match="has 50000 weights; expected at most"):
        laplace.check_size(1000, 50)


def test_a_posterior_is_saved_and_belongs_to_one_model(tmp_path):
    phi, mean_FY, held = problem()
    state = laplace.fit(phi, mean_FY, held, labels())
    folder = Run.open(tmp_path)
    with pytest.raises(UserError, match="has no laplace.npz"):
        laplace.load_posterior(folder, 3)
    laplace.save_posterior(folder, state, 3)
    again = laplace.load_posterior(folder, 3)
    for got, wanted in zip(again, state, strict=True):
        np.testing.assert_array_equal(got, wanted)
    with pytest.raises(UserError, match="does not belong to the model of step 4"):
        laplace.load_posterior(folder, 4)
