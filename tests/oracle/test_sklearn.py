"""Task scores, likelihoods and class weights are scikit-learn's; the loss torch's."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from sklearn.utils.class_weight import compute_class_weight

from hypelora_jax.calibration import metrics
from hypelora_jax.calibration.arrays import total
from hypelora_jax.calibration.metrics import scores
from hypelora_jax.data.class_weights import class_weights, example_weights
from hypelora_jax.objectives.losses import cross_entropy


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


@pytest.mark.parametrize("classes", [2, 4])
def test_class_weights(classes):
    draw = np.random.default_rng(classes)
    labels = draw.choice(classes, 300, p=draw.dirichlet(np.ones(classes)))
    names = tuple(map(str, range(classes)))
    got = class_weights("balanced", names, labels)
    wanted = compute_class_weight("balanced", classes=np.arange(classes), y=labels)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    logits = draw.normal(size=(300, classes)).astype(np.float32)
    weight_N = example_weights(got, labels)
    loss = total(cross_entropy(logits, labels), weight_N) / weight_N.sum()
    theirs = torch.nn.CrossEntropyLoss(torch.tensor(got, dtype=torch.float32))
    wanted = theirs(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
