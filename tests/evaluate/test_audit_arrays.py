"""The arrays of an audit: paired intervals, the verdict, and the description alone."""

import numpy as np
import pytest

from hypelora_jax.calibration import metrics
from hypelora_jax.evaluate.audit import description_only, paired, verdict

TASKS = np.repeat(np.arange(6), 40)


def predictor(shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 2) whose logits are those of the labels plus noise."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(2, size=len(TASKS))
    noise_N = np.random.default_rng(99).normal(size=len(TASKS))
    logit_N = shift * (2 * label_N - 1) + noise_N
    p_N = 1 / (1 + np.exp(-logit_N))
    return np.stack([1 - p_N, p_N], axis=1), label_N


def test_values_are_those_of_the_metrics():
    probs_NY, label_N = predictor(1.0)
    weight_RN = paired.draws(TASKS, 20)
    found = paired.metrics(paired.rows(probs_NY, label_N), weight_RN)
    for name in paired.NAMES:
        expected = getattr(metrics, name)(probs_NY, label_N)
        assert found[name]["value"] == pytest.approx(float(expected), abs=1e-12)
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]


def test_replicas_are_the_metrics_of_the_drawn_rows():
    probs_NY, label_N = predictor(1.0)
    weight_RN = paired.draws(TASKS, 5, seed=3)
    drawn = paired._metrics(paired.rows(probs_NY, label_N), weight_RN)
    for r, weight_N in enumerate(weight_RN):
        at = np.repeat(np.arange(len(TASKS)), weight_N.astype(int))
        for name in paired.NAMES:
            expected = getattr(metrics, name)(probs_NY[at], label_N[at])
            assert drawn[name][r] == pytest.approx(float(expected), abs=1e-12)


def test_a_replica_draws_whole_tasks_and_rows_of_them():
    weight_RN = paired.draws(TASKS, 2000)
    by_task = weight_RN.reshape(2000, 6, 40).sum(axis=2)
    assert set(np.unique(by_task % 40)) == {0} and (by_task.sum(axis=1) == 240).all()
    assert np.mean(by_task == 0) == pytest.approx((5 / 6) ** 6, abs=0.02)
    assert weight_RN.mean() == pytest.approx(1, abs=0.01)
    assert weight_RN.max() > 3
    np.testing.assert_array_equal(weight_RN, paired.draws(TASKS, 2000))


def test_tasks_that_differ_make_the_interval_wider_than_rows_do():
    """Rows of one task are alike, so their number must not narrow the interval."""
    hit = (np.arange(6) < 3)[TASKS]  # three tasks are right everywhere, three wrong
    probs_NY = np.where(hit[:, None], [[0.1, 0.9]], [[0.9, 0.1]])
    found = paired.rows(probs_NY, np.ones(240, int))
    of_tasks = paired.metrics(found, paired.draws(TASKS))["accuracy"]
    of_rows = paired.metrics(found, paired.draws(np.zeros(240)))["accuracy"]
    assert of_tasks["high"] - of_tasks["low"] > 4 * (of_rows["high"] - of_rows["low"])


def test_shared_difficulty_cancels_in_a_difference():
    (good, label_N), (bad, _) = predictor(1.0), predictor(0.8)
    a, b = paired.rows(good, label_N), paired.rows(bad, label_N)
    weight_RN = paired.draws(TASKS)
    found = paired.difference(b, a, weight_RN)["nll"]
    width = found["high"] - found["low"]
    one = paired.metrics(a, weight_RN)["nll"]
    assert found["low"] > 0 and width < (one["high"] - one["low"]) / 2
    same = paired.difference(a, a, weight_RN)
    assert all(x == {"value": 0, "low": 0, "high": 0} for x in same.values())


def test_no_interval_of_a_calibration_error_begins_below_zero():
    label_N = np.tile([0, 1], 100)  # half of each class, as the predictor says
    found = paired.rows(np.full((200, 2), 0.5), label_N)
    weight_RN = paired.draws(np.repeat(np.arange(4), 50))
    ece = paired.metrics(found, weight_RN)["ece"]
    assert ece["value"] == ece["low"] == 0 < ece["high"]


def test_several_draws_of_a_control_count_as_their_mixture():
    (a, label_N), (b, _) = predictor(1.0), predictor(-0.5)
    weight_RN = paired.draws(TASKS, 10)
    mixed = paired.metrics(paired.rows(np.stack([a, b]), label_N), weight_RN)
    for name in ("accuracy", "nll", "brier"):
        each = [float(getattr(metrics, name)(x, label_N)) for x in (a, b)]
        assert mixed[name]["value"] == pytest.approx(np.mean(each), abs=1e-12)
    both, labels = np.concatenate([a, b]), np.concatenate([label_N, label_N])
    assert mixed["ece"]["value"] == pytest.approx(float(metrics.ece(both, labels)))


def of(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


@pytest.mark.parametrize(
    ("margins", "expected", "words"),
    [
        (dict.fromkeys(verdict.NEEDED, of(0.1)), "matters", "beats static"),
        (
            {**dict.fromkeys(verdict.NEEDED, of(0.1)), "static": of(0.01)},
            "cannot be told",
            "does not beat static beyond chance",
        ),
        (
            {**dict.fromkeys(verdict.NEEDED, of(0.1)), "shuffled": of(0.0, 0.005)},
            "does not matter",
            "differs by 0.000",
        ),
        ({"shuffled": of(0.001, 0.004)}, "does not matter", "within 0.01 of 0"),
        ({"shuffled": of(0.0, 0.02)}, "cannot be told", "there is no static and junk"),
        ({}, "cannot be told", "there is no static and shuffled"),
        (
            {**dict.fromkeys(verdict.NEEDED, of(0.1)), "shuffled": of(-0.3)},
            "cannot be told",
            "does not beat shuffled",
        ),
    ],
)
def test_the_verdict_follows_its_rule(margins, expected, words):
    found, line = verdict.verdict(margins)
    assert found == expected and words in line and line.endswith(".")
    assert "\n" not in line


def test_shares_are_those_of_the_labels_of_each_task():
    label_N = np.array([0, 1, 1, -1, 2, 2])
    task_N = np.array([3, 3, 3, 3, 5, 5])
    found = description_only.shares(label_N, task_N, 3)
    np.testing.assert_allclose(found, [[1 / 3, 2 / 3, 0], [0, 0, 1]])


def test_shares_that_the_description_tells_are_found():
    rng = np.random.default_rng(0)
    x_KC = rng.normal(size=(60, 12))
    p_K = 0.5 + 0.4 * np.tanh(x_KC[:, 0])
    share_KY = np.stack([1 - p_K, p_K], axis=1)
    found = description_only.fit_predict(x_KC[:50], share_KY[:50], x_KC[50:])
    np.testing.assert_allclose(found.sum(axis=1), 1)
    error = np.mean((found[:, 1] - p_K[50:]) ** 2)
    assert error < 0.2 * np.var(p_K[50:])


def test_balanced_tasks_tell_nothing():
    rng = np.random.default_rng(0)
    x_KC, share_KY = rng.normal(size=(50, 12)), np.full((50, 2), 0.5)
    found = description_only.fit_predict(x_KC, share_KY, rng.normal(size=(7, 12)))
    np.testing.assert_allclose(found, 0.5, atol=1e-12)


def test_left_out_errors_are_those_of_fits_without_the_task():
    rng = np.random.default_rng(1)
    x, share = rng.normal(size=(9, 4)), rng.random(size=(9, 1))
    gram = x @ x.T / 4
    inverse = np.linalg.inv(gram + 0.1 * np.eye(9))
    fast = (inverse @ share / np.diag(inverse)[:, None])[:, 0]
    for k in range(9):
        rest = np.delete(np.arange(9), k)
        dual = np.linalg.solve(gram[np.ix_(rest, rest)] + 0.1 * np.eye(8), share[rest])
        assert share[k, 0] - gram[k, rest] @ dual[:, 0] == pytest.approx(fast[k])
