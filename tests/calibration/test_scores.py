import numpy as np
import pytest
import scipy.stats

from hypelora_jax.calibration.metrics import scores
from hypelora_jax.errors import UserError

PREDICTED = np.array([1, 0, 1, 1, 0, 0, 1, 0])
LABELS = np.array([1, 0, 0, 1, 1, 0, 1, 0])


def test_by_hand():
    # 3 true positives, 1 false positive, 1 false negative, 3 true negatives
    got = scores.table(("accuracy", "f1", "mcc"), PREDICTED, LABELS)
    assert got == pytest.approx({"accuracy": 0.75, "f1": 0.75, "mcc": 0.5})


def test_mcc_of_two_classes_is_their_correlation():
    y, p = np.random.default_rng(0).integers(0, 2, (2, 500))
    wanted = scipy.stats.pearsonr(y, p).statistic
    assert scores.mcc(p, y) == pytest.approx(wanted, abs=1e-12)


def test_mcc_of_three_classes_by_hand():
    # 3 of 4 right; predicted shares 1/2 1/4 1/4, true shares 1/4 1/2 1/4
    got = scores.mcc(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]))
    assert got == pytest.approx((3 / 4 - 5 / 16) / (1 - 3 / 8))


def test_correlations_are_scipys():
    draw = np.random.default_rng(0)
    y = np.round(draw.uniform(0, 5, 300), 1)  # with ties
    p = (y + draw.normal(size=300)).astype(np.float32)
    wide = p.astype(np.float64)
    wanted = scipy.stats.pearsonr(wide, y).statistic
    assert scores.pearson(p, y) == pytest.approx(wanted, abs=1e-12)
    wanted = scipy.stats.spearmanr(wide, y).statistic
    assert scores.spearman(p, y) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("name", ["f1", "mcc", "pearson", "spearman"])
def test_constant_predictions_score_zero(name):
    zeros = np.zeros(8, int)
    assert scores.table([name], zeros, LABELS) == {name: 0.0}
    assert scores.table([name], PREDICTED, zeros) == {name: 0.0}
    assert scores.table([name], zeros[:1], zeros[:1]) == {name: 0.0}


def test_refuses():
    with pytest.raises(
        UserError, match="score 'auc' is unknown; expected one of accuracy"
    ):
        scores.table(["auc"], PREDICTED, LABELS)
    with pytest.raises(ValueError, match="8 predictions for 7 labels"):
        scores.table(["mcc"], PREDICTED, LABELS[1:])
    with pytest.raises(ValueError, match="at least one"):
        scores.table(["mcc"], [], [])
