"""Models in Python: what the functions return, and that they are those of a run."""

import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import hypelora_jax
from hypelora_jax import trees
from hypelora_jax.config.settings import MeshConfig, from_dict
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train import session
from hypelora_jax.types import Adapter

LABELS = ("negative", "positive")
TEXTS = ["a warm film", "two hours I want back", "good", "no"]
BALANCED = {"class_weights": "balanced"}
SMALL = {"hyper": {"widths": (8,), "cond_dim": 4}, "lora": {"rank": 2}}


@pytest.fixture(scope="module")
def base():
    return hypelora_jax.base_model("random:tiny")


def trained(model, base, steps=3, **options):
    """(losses, params) after some steps on one batch without dropout."""
    step = hypelora_jax.train_step(
        model, optax.adamw(1e-2), deterministic=True, **options
    )
    state, frozen = step.init(model.init(jax.random.key(0)))
    batch, losses = base.batch(TEXTS * 2, labels=[1, 0, 1, 0] * 2), []
    for _ in range(steps):
        state, info = step(state, frozen, batch)
        losses.append(float(info["loss"]))
    return losses, trees.union(state.params, frozen)


def test_importing_the_package_imports_nothing_large():
    code = (
        "import sys, hypelora_jax\n"
        "assert 'build' in dir(hypelora_jax)\n"
        "large = {'jax', 'numpy', 'optax', 'absl'} & set(sys.modules)\n"
        "assert not large, large\n"
        "assert hypelora_jax.metrics.__name__ == 'metrics'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert all(callable(getattr(hypelora_jax, n)) for n in hypelora_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'modle'"):
        hypelora_jax.modle  # noqa: B018


@pytest.mark.parametrize("method", ["hyper_mlp", "lora", "full"])
def test_parameters_are_those_of_a_run_with_the_same_seed(base, method):
    model = hypelora_jax.build(base, LABELS, method, **SMALL)
    config = {"method": method, "seed": 3, "model": {"path": "random:tiny"}, **SMALL}
    settings = from_dict(config | {"data": {"max_length": 32}})
    opened = session.open_session(settings, unnamed(2))
    own = model.init(session.keys(settings).init)
    of_run = trees.union(opened.trainable, opened.frozen)
    jax.tree.map(np.testing.assert_array_equal, own, of_run)
    split = model.split(own)
    parts = (opened.trainable, opened.frozen)
    assert jax.tree.structure(split) == jax.tree.structure(parts)


def test_a_step_trains_what_the_method_says_and_leaves_the_caller_its_arrays(base):
    model = hypelora_jax.build(base, LABELS, **SMALL)
    start = model.init(jax.random.key(0))
    losses, params = trained(model, base)
    assert losses[2] < losses[0]
    before, after = trees.flatten(start), trees.flatten(params)
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert {n.split("/")[0] for n in changed} == {"hyper", "cond", "head"}


def test_devices_and_micro_batches_change_nothing_but_rounding(base):
    model = hypelora_jax.build(base, LABELS, **SMALL)
    one, _ = trained(model, base)
    assert len(jax.devices()) == 8
    mesh = make_mesh(MeshConfig())
    eight, params = trained(model, base, mesh=mesh)
    assert len(params["head"]["out"]["kernel"].sharding.device_set) == 8
    two, _ = trained(model, base, accumulate=2)
    np.testing.assert_allclose(eight, one, rtol=1e-5)
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_an_adapter_is_generated_and_used(base):
    model = hypelora_jax.build(base, LABELS, **SMALL)
    _, params = trained(model, base)
    lora = hypelora_jax.adapter(model, params)
    config = base.base.config
    assert isinstance(lora, Adapter) and lora.row_B is None
    assert lora.factors["q"]["a"].shape == (config.layers, config.width, 2)
    batch = base.batch(TEXTS)
    assert "label" not in batch and batch["mask"].any(axis=1).all()
    with_it = model.classify(params, lora, batch)
    without = model.classify(params, Adapter({}), batch)
    assert with_it.shape == (4, 2) and np.abs(with_it - without).max() > 1e-4


def test_conditions_give_an_adapter_each(base):
    given = {"condition": {"source": "given", "width": 3}}
    model = hypelora_jax.build(base, LABELS, **SMALL, **given)
    params = model.init(jax.random.key(0))
    vectors = np.eye(3, dtype=np.float32)[:2]
    lora = hypelora_jax.adapter(model, params, {"condition": vectors})
    assert lora.factors["q"]["a"].shape[1] == 2
    with pytest.raises(UserError, match="expected 'condition' as well"):
        hypelora_jax.adapter(model, params)
    step = hypelora_jax.train_step(model, optax.sgd(0.1))
    state, frozen = step.init(params)
    batch = base.batch(TEXTS, labels=[0, 1, 0, 1])
    with pytest.raises(UserError, match="expected 'condition' as well"):
        step(state, frozen, batch)
    row = np.array([0, 1, 1, 0], np.int32)
    _, info = step(state, frozen, batch | {"condition": vectors, "row": row})
    assert np.isfinite(info["loss"])


def test_a_regression_has_no_labels(base):
    model = hypelora_jax.build(base, **SMALL)
    step = hypelora_jax.train_step(model, optax.sgd(0.1))
    state, frozen = step.init(model.init(jax.random.key(0)))
    batch = base.batch(TEXTS, labels=[0.5, 1.5, 2.0, 3.0])
    assert batch["label"].dtype == np.float32
    state, info = step(state, frozen, batch)
    assert info["loss"] > 1
    with pytest.raises(UserError, match="expected 'label' as well"):
        step(state, frozen, base.batch(TEXTS))


def test_batches_of_texts(base):
    batch = base.batch(TEXTS, labels=[1, 0, 1, 0], length=8)
    assert {n: (x.dtype.name, x.shape) for n, x in batch.items()} == {
        "ids": ("int32", (4, 8)),
        "mask": ("bool", (4, 8)),
        "types": ("int32", (4, 8)),
        "label": ("int32", (4,)),
        "weight": ("float32", (4,)),
    }
    pairs = base.batch([("a", "b"), ("c", "d e")])
    assert pairs["ids"].shape == (2, max(pairs["mask"].sum(axis=1)))


def test_weights_of_a_folder_come_in(tmp_path):
    """The head of a file is used if it fits, as in `hypelora train`."""
    from hypelora_jax.interop.huggingface import save_model

    made = hypelora_jax.base_model("random:tiny")
    params = hypelora_jax.build(made, LABELS, "head").init(jax.random.key(5))
    host = jax.tree.map(np.asarray, {n: params[n] for n in ("backbone", "head")})
    save_model(tmp_path, made.base.config, host)
    (tmp_path / "tokenizer.json").write_text(made.tokenizer.to_json())
    back = hypelora_jax.base_model(str(tmp_path))
    again = hypelora_jax.build(back, LABELS, "head").init(jax.random.key(6))
    jax.tree.map(np.testing.assert_array_equal, host, again)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: hypelora_jax.build(b, LABELS, "lorra"), "lorra"),
        (
            lambda b: hypelora_jax.build(b, LABELS, optim={"lr": 1}),
            "no section 'optim'",
        ),
        (lambda b: hypelora_jax.build(b, LABELS, lora={"rnk": 1}), "rnk"),
        (
            lambda b: hypelora_jax.build(b, LABELS, model={"path": "x"}),
            "first argument",
        ),
        (lambda b: hypelora_jax.build(b, LABELS, loss={"anneal": "linear"}), "anneal"),
        (
            lambda b: hypelora_jax.build(b, LABELS, loss=BALANCED),
            "class_weights is 'bal",
        ),
        (lambda b: hypelora_jax.build(b, "positive"), "different names"),
        (lambda b: hypelora_jax.build(b, ("a",)), "two or more"),
        (lambda b: hypelora_jax.build(b, ("a", "a")), "different names"),
        (lambda b: hypelora_jax.build(b, (0, 1)), "names of classes"),
        (lambda b: b.batch("a text"), "a list of one or more"),
        (lambda b: b.batch([]), "a list of one or more"),
        (lambda b: b.batch(["a", 3]), r"texts\[1\]"),
        (lambda b: b.batch(["a", ("b", "c")]), r"texts\[1\]"),
        (lambda b: b.batch(["a"], labels=[1, 2]), "one for each text"),
        (lambda b: b.batch(["a"], labels=["yes"]), "one for each text"),
        (lambda b: b.batch(["a"], labels=[-1]), "Leave out the texts"),
        (lambda b: b.batch(["a"], length=10**6), "expected 1 to"),
        (lambda b: hypelora_jax.base_model("random:huge"), "huge"),
    ],
)
def test_mistakes_are_named_in_one_line(base, make, message):
    with pytest.raises(UserError, match=message) as error:
        make(base)
    assert "\n" not in str(error.value)


def test_cut_texts_are_logged(base, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        base.batch(TEXTS, length=6)
    assert "cut 2 of 4 texts to 6 tokens" in caplog.text
