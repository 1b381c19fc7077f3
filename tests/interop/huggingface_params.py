"""Small models with random values, to export and import."""

from dataclasses import replace

import jax
import numpy as np
from tiny import encoder, head

from hypelora_jax.families import preset

ROBERTA = replace(preset("tiny"), vocab=40, max_positions=20)
BERT = replace(ROBERTA, family="bert", pad_id=0, type_vocab=2, norm_eps=1e-12)
XLM_ROBERTA = replace(ROBERTA, family="xlm-roberta")
DISTILBERT = replace(BERT, family="distilbert", type_vocab=0)
CONFIGS = {
    "roberta": ROBERTA,
    "bert": BERT,
    "distilbert": DISTILBERT,
    "xlm-roberta": XLM_ROBERTA,
}


def make_params(config, outputs=2):
    """Random values everywhere (no zeros or ones), exact in bfloat16 and float16."""
    shapes = {
        "backbone": jax.eval_shape(encoder(config).init, jax.random.key(0)),
        "head": jax.eval_shape(head(config, outputs).init, jax.random.key(0)),
    }
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.integers(-127, 128, x.shape).astype(np.float32) / 64, shapes
    )
