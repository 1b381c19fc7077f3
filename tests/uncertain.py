"""Small models under a kind of uncertainty: what several tests of it share."""

import dataclasses

import jax
import numpy as np
import scipy.special
from test_runs import few

from hypelora_jax.config.settings import Settings, UncertaintyConfig
from hypelora_jax.evaluate import averaging
from hypelora_jax.train import scoring, session

__all__ = ["few"]
K = 3
ALPHA = np.zeros((), np.float32)


def with_kind(settings: Settings, kind: str, **fields) -> Settings:
    own = UncertaintyConfig(kind=kind, **{"samples": K, **fields})
    return dataclasses.replace(settings, uncertainty=own)


def opened(settings: Settings, shake: float = 0.3):
    """A model whose factors are not zero, and its validation split."""
    corpus = session.load_corpus(settings)
    bench = session.workbench(settings, corpus.task)
    plan = session.plan(bench, corpus)
    leaves, structure = jax.tree.flatten(bench.trainable)
    draw = np.random.default_rng(0)
    noisy = [x + shake * draw.normal(size=x.shape).astype(np.float32) for x in leaves]
    trainable = jax.tree.unflatten(structure, noisy)
    forward = scoring.forward(bench.model, bench.mesh)
    chosen = averaging.Chosen(
        bench, forward, trainable, bench.frozen, ALPHA, plan.edges
    )
    return chosen, plan.datasets


def softmax(x):
    return scipy.special.softmax(x.astype(np.float64), axis=-1)
