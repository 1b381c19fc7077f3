"""Sharded equals unsharded: on 8 devices, whatever the mesh, the same numbers."""

import functools

import numpy as np
import pytest
import sources
import tiny
from sharding.sharded import (
    OPTIM,
    ROWS,
    batch,
    host,
    mesh_of,
    ready,
    same,
    settings,
    train,
    whole,
)

from hypelora_jax import objectives, trees
from hypelora_jax.plan import traffic
from hypelora_jax.sharding.mesh import put_batch
from hypelora_jax.train import scoring
from hypelora_jax.train import session as session_lib

METHODS = ("lora", "hyper_mlp", "hyper_transformer", "full")
MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
ALL_AXES = (2, 2, 2)
SHORT = (ALL_AXES, "hyper_mlp", 2)  # the most at once; in `make soak` all


def case(sizes, method, accumulate=1):
    """A mesh, a method, and micro-batches of a step."""
    name = f"{method}-{'x'.join(map(str, sizes))}" + "-micro" * (accumulate > 1)
    marks = [] if (sizes, method, accumulate) == SHORT else pytest.mark.soak
    return pytest.param(sizes, method, accumulate, marks=marks, id=name)


CASES = [
    *(case(sizes, method) for method in METHODS for sizes in MESHES),
    case(*SHORT),
    case((1, 8, 1), "full", 2),
]
# What else changes the step, by name: method, kind of uncertainty, sections.
VARIANTS = {
    "seeds of a deep ensemble": ("lora_frozen_a", "deep_ensemble", {}),
    "conditions of a hyper-ensemble": ("hyper_mlp", "hyper_ensemble", {}),
    "draws of a hyper-ensemble": (
        *("hyper_mlp", "hyper_ensemble"),
        {"condition": {"source": "noise", "width": 5}},
    ),
    "random A": ("hyper_mlp", "none", {"hyper": {"a": "random"}}),
    "a step that is skipped": ("hyper_mlp", "none", {"optim": {"skip_nonfinite": 1}}),
}


@pytest.mark.parametrize("sizes, method, accumulate", CASES)
def test_sharded_equals_unsharded(sizes, method, accumulate):
    config = settings(method, optim={"accumulate": accumulate})
    same(train(config, sizes), whole(config))


@pytest.mark.soak
@pytest.mark.parametrize("name", VARIANTS)
def test_sharded_equals_unsharded_whatever_is_drawn_dealt_or_skipped(name):
    method, kind, sections = VARIANTS[name]
    config = settings(method, kind, **sections)
    bad = 2 if config.optim.skip_nonfinite else None
    same(train(config, ALL_AXES, bad), whole(config, bad))


def with_conditions():
    """Meshes and numbers of conditions; in `make soak` all of them."""
    for sizes in ((8, 1, 1), (1, 8, 1), ALL_AXES):
        for count in (1, 3, ROWS):
            short = sizes == ALL_AXES and count == ROWS
            marks = [] if short else pytest.mark.soak
            name = f"{'x'.join(map(str, sizes))}-{count}"
            yield pytest.param(sizes, count, marks=marks, id=name)


@pytest.mark.parametrize("sizes, count", list(with_conditions()))
def test_sharded_equals_unsharded_with_conditions(sizes, count):
    given = {"source": "given", "width": 5}
    # layers without a hyper-network have static factors, which all conditions share
    sections = {"hyper": {"layers": (0, 2)}, "optim": {"accumulate": 2}}
    config = settings("hyper_mlp", condition=given, **sections)
    same(train(config, sizes, count=count), whole(config, count=count))


@pytest.mark.parametrize("grouped", [True, False], ids=["groups", "indices"])
@pytest.mark.parametrize(
    "source", [pytest.param(s, marks=pytest.mark.soak) for s in sources.EVERY]
)
def test_sharded_equals_unsharded_for_every_conditioner(source, grouped):
    """Groups whose number the devices do not divide, jitter, dropout and attention."""
    drawn = {"jitter": 0.1, "dropout": 0.2, "pooling": "attention"}
    config = sources.settings(source, condition=drawn, optim=OPTIM | {"accumulate": 2})
    more = {"count": 4 if grouped else 3, "grouped": grouped}
    same(train(config, ALL_AXES, **more), whole(config, **more))


def test_sharded_equals_unsharded_with_a_sum_of_all_conditioners():
    """Each row has its own: tasks, texts and sets beside instances and one noise."""
    source = "instance+noise+task+text+set"
    config = sources.settings(source, optim=OPTIM)
    more = {"count": 4, "grouped": True}
    same(train(config, ALL_AXES, **more), whole(config, **more))


def compiled(accumulate, sizes=(8, 1, 1), tokens=9):
    config = settings("hyper_mlp", optim={"accumulate": accumulate})
    step, state, frozen, mesh = ready(config, sizes)
    rows = put_batch(batch(0, tokens=tokens), mesh)
    return step.lower(state, frozen, rows).compile(), state


@pytest.mark.soak  # in short: tests/plan/test_plan.py
def test_what_crosses_data_is_the_gradient_of_factors_and_head():
    program, state = compiled(1)
    moved = traffic.collective_bytes(program.as_text())  # each loop iteration counts
    factors = 3 * 2 * 2 * (32 + 32)  # layers, modules, rank, both sides
    wanted = 4 * (factors + trees.count(state.params["head"]))
    assert moved.keys() == {"all-reduce"}
    assert wanted <= moved["all-reduce"] <= 1.1 * wanted + 64, (moved, wanted)
    made = 4 * trees.count(state.params["hyper"])
    assert made > 0.5 * wanted, "else the test could not tell"


@pytest.mark.soak
def test_fsdp_gathers_kernels_and_sums_no_hidden_states():
    (whole_weights, _), (cut, _) = compiled(1), compiled(1, (1, 8, 1))
    summed = [
        traffic.collective_bytes(program.as_text())["all-reduce"]
        for program in (whole_weights, cut)
    ]
    assert summed[1] < 1.1 * summed[0], summed
    memory = [p.memory_analysis().temp_size_in_bytes for p in (whole_weights, cut)]
    assert memory[1] < 1.2 * memory[0], memory


@pytest.mark.soak
def test_micro_batches_are_cut_by_rows():
    """Each device does a part of every micro-batch, not all of one of them."""
    # long rows, so that most of the memory is that of their states
    (one, _), (two, _) = compiled(1, tokens=40), compiled(2, tokens=40)
    flops = [program.cost_analysis()["flops"] for program in (one, two)]
    assert flops[1] < 0.7 * flops[0], flops  # a loop's body counts once
    memory = [program.memory_analysis().temp_size_in_bytes for program in (one, two)]
    assert memory[1] < 0.8 * memory[0], memory


@functools.cache
def judged(sizes):
    """On a mesh: parameters, logits and metrics of a split of 45 examples."""
    sections = {
        "model": {"path": "random:tiny"},
        "data": {"source": "synthetic", "num_examples": 64, "max_length": 32},
    }
    config = tiny.settings("hyper_mlp", **sections)
    corpus = session_lib.load_corpus(config)
    session = session_lib.open_session(config, corpus.task, mesh=mesh_of(sizes))
    data = session_lib.with_data(session, corpus).datasets["validation"]
    data = data._replace(label=data.label[:45], ids=data.ids[:45], soft=None)
    encoded = data.encoded._replace(
        ids=data.encoded.ids[:45], types=data.encoded.types[:45]
    )
    logits = scoring.split_logits(
        scoring.forward(session.model, session.mesh),
        session.trainable,
        session.frozen,
        np.zeros((), np.float32),
        data._replace(encoded=encoded),
        (24, 32),
        6,  # 8 devices cannot cut this: evaluation makes it 8
    )
    params = host(trees.union(session.trainable, session.frozen))
    return params, logits, scoring.judge(objectives.of(corpus.task), logits, data.label)


@pytest.mark.soak  # in short: tests/sharding/test_processes.py
@pytest.mark.parametrize("sizes", MESHES, ids=lambda s: "x".join(map(str, s)))
def test_evaluation_counts_each_example_once(sizes):
    params, logits, metrics = judged((1, 1, 1))
    got_params, got_logits, got_metrics = judged(sizes)
    for path, x in params.items():
        np.testing.assert_allclose(got_params[path], x, atol=1e-6, err_msg=path)
    assert got_logits.shape == (45, 2) and np.isfinite(got_logits).all()
    np.testing.assert_allclose(got_logits, logits, atol=1e-5, rtol=0)
    assert got_metrics["n"] == 45
    for name, value in metrics.items():
        assert got_metrics[name] == pytest.approx(value, abs=1e-6), name
