"""Logits, gradients and training of every model of the reference, dropout off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from parity import golden

from hypelora_jax import trees
from hypelora_jax.config.settings import MeshConfig
from hypelora_jax.keys import named_keys
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train.optimizer import blend_alpha, optimizer
from hypelora_jax.train.state import init_state
from hypelora_jax.train.step import build_step, gradients

ALL = [*golden.MODELS, *golden.BASELINES]
# In float64, of the folder in the tree; its others are in tests/oracle/test_golden.py,
# as they take a minute. Of a folder that is named, every case.
ONE_OF_EACH = [
    *[n for n, case in golden.MODELS.items() if case["A"] == "generated"][:1],
    *[n for n, case in golden.BASELINES.items() if case["method"] == "lora"],
]
IN_SHORT = ALL if golden.NAMED else ONE_OF_EACH


class Case:
    """One golden run: settings, model, parameters and what the reference got."""

    def __init__(self, name: str, dtype: str):
        self.golden = golden.load(name)
        if name in golden.MODELS:
            info = golden.MODELS[name]
            self.settings = golden.model_settings(info, dtype)
            self.model = golden.build(self.settings)
            params = golden.case_params(self.settings, self.model, self.golden)
        else:
            info = golden.BASELINES[name]
            self.settings = golden.baseline_settings(info, dtype)
            self.model = golden.build(self.settings)
            params = self.baseline("start/")
        self.params = golden.cast(params, dtype)
        self.transformer = self.settings.method == "hyper_transformer"
        self.steps = info["optimizer"]["steps"]
        self.alpha = blend_alpha(self.settings.blend, self.steps)
        self.trainable, self.frozen = self.model.split(self.params)

    def baseline(self, prefix: str) -> dict:
        tensors = golden.under(self.golden, prefix)
        lora = {k: x for k, x in tensors.items() if ".lora_" in k}
        others = {k: x for k, x in tensors.items() if k not in lora}
        params = golden.base_params({**golden.base_tensors(), **others})
        if lora:
            params["lora"] = golden.lora_tensors(self.model, lora)
        return params

    def logits(self, trainable: dict, step: int) -> jax.Array:
        params, alpha = trees.union(trainable, self.frozen), self.alpha(step)
        return tiny.predict(self.model, params, golden.batch(), alpha)

    def train(self, steps: int) -> tuple[list[float], dict]:
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        tx = optimizer(self.settings.optim, self.steps)
        step = build_step(self.model, tx, self.alpha, mesh, deterministic=True)
        state = init_state(self.trainable, tx, jax.random.key(0))
        losses = []
        for _ in range(steps):
            state, info = step(state, self.frozen, golden.batch())
            losses.append(float(info["loss"]))
        return losses, state.params


@pytest.mark.parametrize("name", ALL)
def test_float32(name):
    case = Case(name, "float32")
    golden.close(case.logits(case.trainable, 0), case.golden["logits"], 1e-5, "logits")
    steps = min(6, case.steps) if case.transformer else case.steps
    losses, trained = case.train(steps)
    tolerance = 5e-4 if case.transformer else 5e-5
    golden.relative(losses, case.golden["losses"][:steps], tolerance, "losses")
    if not case.transformer:
        end = case.logits(trained, case.steps - 1)
        golden.close(end, case.golden["end_logits"], 1e-4, "end logits")


@pytest.mark.parametrize("name", IN_SHORT)
def test_float64(name):
    in_float64(name)


def in_float64(name: str) -> None:
    """Logits, gradients, losses and end of one golden run, all in float64."""
    with jax.enable_x64(True):
        case = Case(name, "float64")
        golden.close(case.logits(case.trainable, 0), case.golden["logits"], 1e-9)
        check_gradients(case)
        losses, trained = case.train(case.steps)
        assert len(losses) == len(case.golden["losses"])
        of_losses, of_logits = (1e-5, 2e-4) if case.transformer else (1e-6, 2e-6)
        golden.relative(losses, case.golden["losses"], of_losses, "losses")
        end = case.logits(trained, case.steps - 1)
        golden.close(end, case.golden["end_logits"], of_logits, "end logits")
        if len(case.golden.get("alphas", ())):
            alphas = [case.alpha(s) for s in range(case.steps)]
            golden.close(alphas, case.golden["alphas"], 1e-12, "alphas")


def check_gradients(case: Case) -> None:
    """First-step gradients, before clipping, within 1e-6 of each tensor's largest."""
    wanted = golden.under(case.golden, "grad/")
    if not wanted:
        return
    grads = jax.jit(gradients(case.model, 1, deterministic=True))
    keys = named_keys(jax.random.key(0), 0, "adapt", "rows")
    _, _, got = grads(
        case.trainable, case.frozen, golden.batch(), jnp.asarray(case.alpha(0)), keys
    )
    if case.settings.method.startswith("hyper"):
        tree = golden.hyper_tensors(
            case.settings, case.model, golden.under(wanted, "hyper/")
        )
        tree["head"] = golden.head_tree(golden.under(wanted, "classifier/"))
        if case.model.parts.lora_sites:
            tree["lora"] = golden.lora_tensors(
                case.model, golden.under(wanted, "lora/")
            )
    got, tree = trees.flatten(got), trees.flatten(tree)
    assert got.keys() == tree.keys()
    for path, x in tree.items():
        # a key bias adds one number to all scores of a softmax: its gradient is
        # zero but for rounding, so it is compared with nothing of its own size
        size = 1e-9 if path.endswith("/k/bias") else np.max(np.abs(x))
        golden.close(got[path], x, 1e-6 * size, path)
