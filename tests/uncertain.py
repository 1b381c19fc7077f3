"""Small models under a kind of uncertainty: what several tests of it share."""

import dataclasses

import jax
import numpy as np
import scipy.special
from test_runs import few

from hypelora_jax.calibration import calibrators
from hypelora_jax.config.settings import Settings, UncertaintyConfig
from hypelora_jax.evaluate.fitted import Fitted
from hypelora_jax.run.paths import Run
from hypelora_jax.train import scoring
from hypelora_jax.train import session as session_lib

__all__ = ["few"]
K = 3
ALPHA = np.zeros((), np.float32)


def with_kind(settings: Settings, kind: str, **fields) -> Settings:
    own = UncertaintyConfig(kind=kind, **{"samples": K, **fields})
    return dataclasses.replace(settings, uncertainty=own)


def opened(settings: Settings, shake: float = 0.3):
    """A model whose factors are not zero, and its validation split."""
    corpus = session_lib.load_corpus(settings)
    session = session_lib.open_session(settings, corpus.task)
    session = session_lib.with_data(session, corpus)
    leaves, structure = jax.tree.flatten(session.trainable)
    draw = np.random.default_rng(0)
    noisy = [x + shake * draw.normal(size=x.shape).astype(np.float32) for x in leaves]
    trainable = jax.tree.unflatten(structure, noisy)
    forward = scoring.forward(session.model, session.mesh)
    own = (trainable, session.frozen, ALPHA, 0)
    nowhere = Run.open("no-such-run")
    calibrator = calibrators.Temperature(1.0)
    chosen = Fitted(nowhere, session, forward, *own, calibrator, 1.0)
    return chosen, session.datasets


def softmax(x):
    return scipy.special.softmax(x.astype(np.float64), axis=-1)
