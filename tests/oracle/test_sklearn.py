"""Task scores and likelihoods are scikit-learn's."""

import numpy as np
import pytest
import sklearn.metrics

from hypelora_jax.calibration import metrics
from hypelora_jax.calibration.metrics import scores


@pytest.mark.parametrize("classes", [2, 4])
def test_scores(classes):
    y, p = np.random.default_rng(0).integers(0, classes, (2, 500))
    wanted = sklearn.metrics.matthews_corrcoef(y, p)
    assert scores.mcc(p, y) == pytest.approx(wanted, abs=1e-12)
    wanted = sklearn.metrics.f1_score(y == 1, p == 1)
    assert scores.f1(p, y) == pytest.approx(wanted, abs=1e-12)


def test_likelihood_and_brier():
    draw = np.random.default_rng(0)
    probs, labels = draw.dirichlet(np.ones(3), 200), draw.integers(0, 3, 200)
    wanted = sklearn.metrics.log_loss(labels, probs)
    assert metrics.nll(probs, labels) == pytest.approx(wanted, abs=1e-12)
    wanted = sklearn.metrics.brier_score_loss(labels, probs, scale_by_half=False)
    assert metrics.brier(probs, labels) == pytest.approx(wanted, abs=1e-12)
