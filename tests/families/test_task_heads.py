"""Heads for sets of tasks: a last layer for each task, and logits of labels' names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hypelora_jax import families, objectives, trees
from hypelora_jax.config.settings import HeadConfig, LossConfig
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.families.label_text_head import with_labels
from hypelora_jax.train import scoring
from hypelora_jax.types import ABSENT

TASKS, CLASSES, WIDTH, ROWS = 3, 2, 6, 5
TASK = unnamed(CLASSES)._replace(tasks=TASKS, label_width=WIDTH)
OF_ROW = jnp.asarray([2, 0, 0, 2, 1], jnp.int32)


def build(kind, task=TASK, dtype="float32", **fields):
    config = HeadConfig(kind=kind, **fields)
    return families.head(config, tiny.CONFIG, task, dtype=dtype)


def states(seed=0, rows=ROWS, tokens=4):
    shape = (rows, tokens, tiny.CONFIG.width)
    return jax.random.normal(jax.random.key(seed), shape)


def embedded(seed=0, rows=ROWS, classes=CLASSES):
    """Embeddings (B, Y, E) of mean square 1."""
    e = np.random.default_rng(seed).normal(size=(rows, classes, WIDTH))
    e /= np.sqrt(np.mean(e**2, axis=-1, keepdims=True))
    return jnp.asarray(e, jnp.float32)


def drawn(head, by=0.1):
    return tiny.shaken(head.init(jax.random.key(0)), by=by)


def test_a_row_gets_the_last_layer_of_its_task():
    head = build("per_task")
    params, hidden = drawn(head), states()
    assert params["out"]["kernel"].shape == (TASKS, tiny.CONFIG.width, CLASSES)
    assert params["out"]["bias"].shape == (TASKS, CLASSES)
    got = head.apply(params, hidden, {"task": OF_ROW})
    one = tiny.head(tiny.CONFIG, CLASSES)
    for task in range(TASKS):
        own = {**params, "out": jax.tree.map(lambda x, k=task: x[k], params["out"])}
        wanted = one.apply(own, hidden, {})
        at = np.asarray(OF_ROW) == task
        np.testing.assert_allclose(got[at], wanted[at], atol=1e-6)
    key = jax.random.key(1)
    assert jnp.abs(head.apply(params, hidden, {"task": OF_ROW}, key) - got).max() > 1e-3


def test_known_labels_make_it_a_head_of_classes():
    """With the names of the classes at hand, the logits are linear in the state."""
    head = build("label_text", width=8)
    params, hidden = drawn(head), states()
    label_YE = embedded(rows=1, classes=3)[0]
    labels = jnp.broadcast_to(label_YE[None], (ROWS, *label_YE.shape))
    wanted = head.apply(params, hidden, {"labels": labels})
    own = with_labels(params, label_YE, 8)
    got = tiny.head(tiny.CONFIG, 3).apply(own, hidden, {})
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_tasks_that_are_not_in_the_batch_get_no_gradient():
    head = build("per_task")
    params, batch = drawn(head), {"task": jnp.asarray([2, 0, 0, 2, 2])}

    def total(params):
        return jnp.sum(jnp.square(head.apply(params, states(), batch)))

    slopes = jax.grad(total)(params)
    for x in jax.tree.leaves(slopes["out"]):
        assert not x[1].any() and x[0].any() and x[2].any()
    assert slopes["dense"]["kernel"].any()


def test_a_task_that_does_not_exist_has_no_logits():
    head = build("per_task")
    got = head.apply(drawn(head), states(rows=2), {"task": jnp.asarray([1, TASKS])})
    assert np.isfinite(got[0]).all() and np.isnan(got[1]).all()


def test_logits_of_label_texts_by_hand():
    head = build("label_text", width=8)
    params, hidden, labels = drawn(head), states(), embedded()
    got = head.apply(params, hidden, {"labels": labels})
    p = {name: np.asarray(x, np.float64) for name, x in trees.flatten(params).items()}
    assert p["state/kernel"].shape == (tiny.CONFIG.width, 8)
    assert p["label/kernel"].shape == (WIDTH, 8)
    h = np.tanh(np.asarray(hidden)[:, 0] @ p["dense/kernel"] + p["dense/bias"])
    products = np.einsum(
        "bw,byw->by", h @ p["state/kernel"], labels @ p["label/kernel"]
    )
    wanted = np.exp(p["log_scale"]) / np.sqrt(8) * products
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    key = jax.random.key(1)
    dropped = head.apply(params, hidden, {"labels": labels}, key)
    assert jnp.abs(dropped - got).max() > 1e-3


def test_labels_are_told_apart_by_their_names_alone():
    head = build("label_text")
    params, labels = drawn(head), embedded(classes=3)
    got = head.apply(params, states(), {"labels": labels})
    order = jnp.asarray([2, 0, 1])
    moved = head.apply(params, states(), {"labels": labels[:, order]})
    np.testing.assert_allclose(moved, got[:, order], rtol=1e-6)
    # other names, and more of them, of a task that nobody trained
    new = jnp.concatenate([labels[:, :1], embedded(5, classes=3)], axis=1)
    found = head.apply(params, states(), {"labels": new})
    np.testing.assert_allclose(found[:, 0], got[:, 0], rtol=1e-6)
    assert found.shape == (ROWS, 4) and jnp.std(found, axis=1).min() > 1e-3


def test_first_logits_have_about_the_size_of_those_of_other_heads():
    task = TASK._replace(label_width=384)
    sizes = families.preset("minilm")
    shape = (256, 1, sizes.width)
    hidden, deviations = jax.random.normal(jax.random.key(1), shape), {}
    labels = jax.random.normal(jax.random.key(2), (256, CLASSES, 384))
    batch = {"labels": labels, "task": jnp.zeros(256, jnp.int32)}
    for kind in ("classes", "per_task", "label_text"):
        head = families.head(HeadConfig(kind=kind), sizes, task, dtype="float32")
        logits = head.apply(head.init(jax.random.key(0)), hidden, batch)
        deviations[kind] = float(jnp.std(logits))
    assert 0.05 < min(deviations.values()) and max(deviations.values()) < 0.6


KINDS = ("per_task", "label_text")


def entries(rows=ROWS, seed=0):
    task = np.random.default_rng(seed).integers(0, TASKS, rows)
    return {"task": jnp.asarray(task, jnp.int32), "labels": embedded(seed, rows)}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_examples_have_the_logits_of_rows(kind):
    head = build(kind)
    params, given, hidden = drawn(head), entries(6), states(rows=6, tokens=1)
    wanted = head.apply(params, hidden, given)
    packed = hidden.reshape(2, 3, -1)
    found = head.apply(params, packed, {**given, "first": jnp.zeros((2, 3))})
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_at_least_float32(kind):
    head = build(kind, dtype="bfloat16")
    params = head.init(jax.random.key(0))
    low = states().astype(jnp.bfloat16)
    assert head.apply(params, low, entries()).dtype == jnp.float32
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        got = build(kind, dtype="float64").apply(double, states(), entries())
        assert got.dtype == jnp.float64


@pytest.mark.parametrize("kind", KINDS)
def test_every_leaf_has_a_gradient_from_the_first_step_on(kind):
    head = build(kind)

    def loss(params):
        logits = head.apply(params, states(), {**entries(), "task": OF_ROW})
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])

    slopes = jax.grad(loss)(head.init(jax.random.key(0)))
    for path, x in trees.flatten(slopes).items():
        assert float(jnp.abs(x).max()) > 1e-6, path


def with_fewer_classes(kind="label_text"):
    """Logits (B, 3) of rows with 3, 2 and 3 classes, and labels that they have."""
    task = unnamed(3)._replace(tasks=3, label_width=WIDTH, classes=(3, 2, 3))
    head = build(kind, task)
    labels = embedded(rows=3, classes=3).at[1, 2].set(0)
    batch, params = {"labels": labels, "task": jnp.arange(3)}, drawn(head)

    def logits(params):
        return head.apply(params, states(rows=3), batch)

    return logits, params, jnp.asarray([2, 0, 1], jnp.int32)


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize(
    "loss",
    [
        {"smoothing": 0.1, "temperature": "learned"},
        {"name": "brier", "smoothing": 0.1},
        {"name": "focal", "penalty": "confidence", "penalty_weight": 1.0},
        {"name": "flsd53", "penalty": "margin", "penalty_weight": 1.0},
        {"penalty": "mmce", "penalty_weight": 1.0},
        {"penalty": "soft_ece", "penalty_weight": 1.0},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_class_that_a_task_does_not_have_disturbs_no_loss(loss, labels):
    logits, params, label = with_fewer_classes()
    objective = objectives.of(unnamed(3), LossConfig(**loss))
    if labels == "soft":
        shares = jax.nn.softmax(jnp.asarray([[0.0, 1, 2], [1, 0, 0], [1, 2, 0]]))
        label = shares.at[1].set(jnp.asarray([0.3, 0.7, 0]))

    class Model:
        @staticmethod
        def classify(params, *_):
            return logits(params["head"])

    def total(params):
        batch = {"label": label, "weight": jnp.ones(3)}
        return objective.sums(Model, params, None, batch, None)[0]

    start = {"head": params, "loss": objective.init(jax.random.key(0))}
    value, slopes = jax.value_and_grad(total)(start)
    assert 0 < abs(float(value)) < 20
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    assert float(jnp.abs(slopes["head"]["label"]["kernel"]).max()) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_a_task_does_not_have_has_probability_0(kind):
    logits, params, label = with_fewer_classes(kind)
    z = np.asarray(logits(params))
    p = np.asarray(jax.nn.softmax(z))
    assert (
        z[1, 2] == np.float32(ABSENT) and p[1, 2] == 0 and (p.sum(axis=1) > 0.99).all()
    )
    assert (np.delete(p.ravel(), 5) > 0).all()
    judged = scoring.judge(objectives.of(unnamed(3), LossConfig()), z, label, 1.5)
    assert {"nll", "ece", "brier"} <= judged.keys()
    numbers = [x for x in jax.tree.leaves(judged) if isinstance(x, float)]
    assert np.isfinite(numbers).all()


def test_classes_that_a_task_lacks_leave_the_others_of_its_last_layer():
    task = unnamed(3)._replace(tasks=TASKS)
    plain, cut = (
        build("per_task", x) for x in (task, task._replace(classes=(3, 2, 3)))
    )
    params, batch = drawn(plain), {"task": jnp.asarray([2, 1, 0, 1, TASKS])}
    wanted, got = (head.apply(params, states(), batch) for head in (plain, cut))
    absent = np.zeros((ROWS, 3), bool)
    absent[[1, 3], 2] = True
    assert (got[absent] == np.float32(ABSENT)).all()
    np.testing.assert_array_equal(got[~absent], wanted[~absent])
    assert np.isnan(got[4]).all(), "a task that does not exist"

    def total(params):
        logits = cut.apply(params, states()[:4], {"task": batch["task"][:4]})
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1))

    slopes = jax.grad(total)(params)["out"]
    assert not slopes["kernel"][1, :, 2].any() and not slopes["bias"][1, 2]
    assert slopes["kernel"][1, :, :2].any() and slopes["kernel"][0, :, 2].any()


def test_what_does_not_fit_is_one_line():
    alone, numbers = unnamed(2), unnamed(1)._replace(tasks=2, label_width=4)
    for kind, task, message in (
        ("per_task", alone, "the data are one task; expected data.source=tasks"),
        ("label_text", alone, "are not a set of tasks; expected data.source=tasks"),
        ("label_text", numbers, "have no classes; expected data.source=tasks with"),
    ):
        with pytest.raises(UserError, match=message):
            build(kind, task)
    with pytest.raises(UserError, match=r"head\.width is 0; expected at least 1"):
        HeadConfig(width=0)
