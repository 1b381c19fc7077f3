"""Every loss, trained by the real loop on texts, reaches the optimum it claims.

A tiny encoder without dropout first learns the grammar by full fine-tuning, from random
weights, with cross-entropy. Then each loss trains a fresh head and a hyper-network on
that frozen encoder, from chance. A model is judged on new texts against the true class
probabilities, so no sampling of labels blurs the result.
"""

import dataclasses
import os

import jax
import numpy as np
import pytest
import scipy.special
from optimum import CLAIMS

from hypelora_jax import families
from hypelora_jax.config.settings import Settings, from_dict
from hypelora_jax.families.roberta import ROBERTA
from hypelora_jax.objectives import training_loss
from hypelora_jax.objectives.classification import class_loss
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import compiler
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train import loop, scoring
from hypelora_jax.train import session as session_lib

pytestmark = pytest.mark.soak
# The suite compiles with level 0, and then these steps take three times as long.
FAST: dict[str, bool | int] = {"xla_backend_optimization_level": 1}
if "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]:  # as `make soak` says
    FAST["xla_cpu_use_fusion_emitters"] = True
PLAIN = dataclasses.replace(
    families.preset("tiny"), hidden_dropout=0.0, attention_dropout=0.0, head_dropout=0.0
)


def settings(loss: dict, **sections) -> Settings:
    data = {
        "source": "synthetic",
        "num_examples": 32768,
        "max_length": 48,
        "pad_to_max": True,
    }
    optim = {"batch_size": 64, "weight_decay": 0.0, "schedule": "cosine"}
    own = {
        "model": {"path": "random:tiny_plain"},
        "data": data,
        "loss": loss,
        "optim": optim | sections.pop("optim"),
        "log": {"every_steps": 100},
        "select_on": "last",
        **sections,
    }
    return from_dict(own)


def fit(config: Settings, workdir, backbone=None):
    """(trained parameters, raw logits (N, Y) on test, true probabilities)."""
    corpus = session_lib.load_corpus(config)
    # one device, because eight fake ones take five times as long for so small a batch
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    session = session_lib.open_session(config, corpus.task, mesh=mesh)
    if backbone is not None:
        session = session._replace(frozen={**session.frozen, "backbone": backbone})
    session = session_lib.with_data(session, corpus)
    got, _ = loop.train(session, Run.open(workdir), progress=False)
    trainable, alpha = got.state.params, session.alpha_after(got.step)
    data = session.datasets["test"]
    logits = scoring.split_logits(
        session.forward, trainable, got.frozen, alpha, data, session.edges, 64
    )
    return trainable, logits.astype(np.float64), data.soft.astype(np.float64)


def nll(p_NY, z_NY):
    return float(-np.mean(np.sum(p_NY * scipy.special.log_softmax(z_NY, 1), 1)))


def entropy(p_NY):
    return nll(p_NY, np.log(p_NY))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Backbone that knows the grammar, from random weights by cross-entropy alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "options", lambda mesh: FAST)
        patch.setitem(ROBERTA.presets, "tiny_plain", PLAIN)
        config = settings({}, method="full", optim={"lr": 4e-3, "num_epochs": 24})
        trained, z_NY, p_NY = fit(config, tmp_path_factory.mktemp("full"))
        print(f"full: NLL {nll(p_NY, z_NY):.5f}, entropy {entropy(p_NY):.5f}")
        assert nll(p_NY, z_NY) < 1.01 * entropy(p_NY)
        yield trained["backbone"]


@pytest.mark.parametrize("name", CLAIMS)
def test_training_reaches_the_optimum(encoder, tmp_path, name):
    claim = CLAIMS[name]
    epochs = 4 if claim.proper else 7  # focal losses are flat near their minimum
    config = settings(
        dataclasses.asdict(claim.config),
        method="hyper_mlp",
        hyper={"widths": (32,), "cond_dim": 16},
        lora={"rank": 2},
        optim={"lr": 4e-3, "num_epochs": epochs},
    )
    trained, z_NY, p_NY = fit(config, tmp_path / "run", encoder)
    t = claim.config.temperature
    if t == "learned":
        t = training_loss.temperature_of(trained["loss"])
    z_NY = z_NY / (t if claim.config.anneal == "none" else 1.0)
    if claim.proper:
        got, wanted = nll(p_NY, z_NY), entropy(p_NY)
    else:  # the expected loss itself, and what the best table of logits has
        got, wanted = (
            loss_of(claim.config, p_NY, z_NY).mean(),
            best(claim.config, p_NY, z_NY),
        )
    print(f"{name}: {got:.5f}, wanted {wanted:.5f}, {got / wanted - 1:+.2%}, T {t}")
    assert got < 1.01 * wanted


def loss_of(config, p_NY, z_NY) -> np.ndarray:
    """Loss (N,) over labels drawn from p: these losses are linear in the label."""
    loss = class_loss(config)
    with jax.enable_x64(True):
        return np.asarray(loss.apply({}, jax.numpy.asarray(z_NY), p_NY))


def best(config, p_NY, z_NY) -> float:
    """Loss of the best logits for each kind of example, by trying 20,000 of them.

    FLSD-53 jumps at q = 0.2, where its exponent changes, and the kinds whose best q is
    there have a minimum on either side: the side that training came to counts.
    """
    p_KY, kind_N, count = np.unique(
        p_NY, axis=0, return_inverse=True, return_counts=True
    )
    z_GY = np.stack([-(half := np.linspace(-5, 5, 20_000)), half], 1)
    total = 0.0
    for kind, p_Y in enumerate(p_KY):
        tried_G = loss_of(config, np.broadcast_to(p_Y, z_GY.shape), z_GY)
        if config.name == "flsd53":
            own_Y = scipy.special.softmax(z_NY[kind_N == kind].mean(0))
            sides_GY = (scipy.special.softmax(z_GY, 1) < 0.2) == (own_Y < 0.2)
            tried_G = tried_G[sides_GY.all(1)]
        total += count[kind] * float(tried_G.min())
    return total / len(p_NY)
