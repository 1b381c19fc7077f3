"""Splits whose true class probabilities are known: over-confident, biased logits."""

import numpy as np
import scipy.special


def split(classes: int, n: int, seed: int = 0, scale: float = 2.0):
    """Logits (n, classes), labels drawn from `truth(logits)`."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(n, classes)) * scale
    cumulative = truth(logits).cumsum(axis=1)
    labels = (draw.random((n, 1)) > cumulative).sum(axis=1).clip(0, classes - 1)
    return logits, labels


def truth(logits):
    """Half as sure as softmax(logits), with a bias to the last class."""
    bias = np.linspace(-0.5, 0.5, logits.shape[1])
    return scipy.special.softmax(0.5 * logits + bias, axis=1)
