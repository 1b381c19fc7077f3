"""Small models under a kind of uncertainty: what several tests of it share."""

import dataclasses

import jax
import numpy as np
import scipy.special
from test_runs import few

from hypelora_jax.settings import Settings, UncertaintyConfig
from hypelora_jax.train import setup, validate
from hypelora_jax.uncertainty import kinds

__all__ = ["few"]
K = 3
ALPHA = np.zeros((), np.float32)


def with_kind(settings: Settings, kind: str, **fields) -> Settings:
    own = UncertaintyConfig(kind=kind, **{"samples": K, **fields})
    return dataclasses.replace(settings, uncertainty=own)


def opened(settings: Settings, shake: float = 0.3):
    """A model whose factors are not zero, and its validation split."""
    corpus = setup.load_corpus(settings)
    bench = setup.workbench(settings, corpus.task)
    plan = setup.plan(bench, corpus)
    leaves, structure = jax.tree.flatten(bench.trainable)
    draw = np.random.default_rng(0)
    noisy = [x + shake * draw.normal(size=x.shape).astype(np.float32) for x in leaves]
    trainable = jax.tree.unflatten(structure, noisy)
    forward = validate.forward(bench.model, bench.mesh)
    chosen = kinds.Chosen(bench, forward, trainable, bench.frozen, ALPHA, plan.edges)
    return chosen, plan.datasets


def softmax(x):
    return scipy.special.softmax(x.astype(np.float64), axis=-1)
