"""Conformal sets are MAPIE's, and those of a plain loop where it has no such sets."""

import math

import numpy as np
import pytest
import simulated
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

from hypelora_jax.calibration import calibrators, conformal

N = 800
NEW = {3: np.random.default_rng(9).normal(size=(500, 3)) * 3}


class Given(ClassifierMixin, BaseEstimator):
    """An estimator of which the inputs are the probabilities."""

    def __init__(self, classes=3):
        self.classes = classes

    def fit(self, x=None, y=None):
        self.classes_ = np.arange(self.classes)
        self.n_features_in_ = self.classes
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


def test_thr_is_mapies_lac():
    logits, labels = simulated.split(3, N)
    probs, new = calibrators.softmax(logits), calibrators.softmax(NEW[3])
    peer = SplitConformalClassifier(
        Given().fit(), confidence_level=0.9, conformity_score="lac", prefit=True
    )
    peer.conformalize(probs, labels)
    _, wanted = peer.predict_set(new)
    got = conformal.members(conformal.fit(probs, labels, 0.9), new)
    np.testing.assert_array_equal(got, wanted[:, :, 0])


def test_aps_is_mapies_with_the_same_uniform_numbers():
    logits, labels = simulated.split(3, N)
    probs, new = calibrators.softmax(logits), calibrators.softmax(NEW[3])
    peer = SplitConformalClassifier(
        *(Given().fit(), 0.8, "aps"), prefit=True, random_state=7
    )
    peer.conformalize(probs, labels)
    params = {"include_last_label": "randomized"}
    _, wanted = peer.predict_set(new, conformity_score_params=params)
    # MAPIE takes a share of the class's own mass off, we add one; it starts its
    # generator again for each of its two steps
    u_cal, u_new = (1 - np.random.RandomState(7).uniform(size=n) for n in (N, len(new)))
    threshold = conformal.fit(probs, labels, 0.8, "aps", u_N=u_cal)
    got = conformal.members(threshold, new, u_new)
    np.testing.assert_array_equal(got, wanted[:, :, 0])
    assert (got.sum(axis=1) == 0).any()  # randomised sets may be empty in both


def score(probs, k, u, penalty, free):
    """Angelopoulos et al., 2021, equation 4, of class k; u shares out its own mass."""
    above = [j for j, p in enumerate(probs) if p > probs[k]]
    rank = len(above) + 1
    return sum(probs[j] for j in above) + u * probs[k] + penalty * max(rank - free, 0)


@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_raps_is_the_loop(coverage):
    logits, labels = simulated.split(3, N)
    probs, new = (calibrators.softmax(z) for z in (logits, NEW[3]))
    chance = np.random.default_rng(3)
    u_cal, u_new = chance.random(N), chance.random(len(new))
    own = sorted(
        score(row, y, u, 0.1, 1)
        for row, y, u in zip(probs.tolist(), labels, u_cal, strict=True)
    )
    limit = own[math.ceil((N + 1) * coverage) - 1]
    wanted = [
        [score(row, k, u, 0.1, 1) <= limit for k in range(3)]
        for row, u in zip(new.tolist(), u_new, strict=True)
    ]
    threshold = conformal.fit(probs, labels, coverage, "raps", u_N=u_cal)
    assert threshold.score_Y == pytest.approx(limit, abs=1e-12)
    got = conformal.members(threshold, new, u_new)
    np.testing.assert_array_equal(got, wanted)
