"""The share of deltas that varies: by the dense formula, and of planted networks."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from hypelora_jax.adapters.sites import Site
from hypelora_jax.config.settings import MeshConfig
from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.evaluate.audit import delta_variance
from hypelora_jax.report import metric_tables, result_tables
from hypelora_jax.sharding.mesh import make_mesh

TASKS = 5
SITES = {"q": Site(7, 5, (0, 2)), "up": Site(4, 9, (0, 1, 2))}


def drawn(count=TASKS, layers=3, rank=2):
    rng = np.random.default_rng(0)
    return {
        m: {
            "a": rng.normal(size=(layers, count, s.d_in, rank)).astype(np.float32),
            "b": rng.normal(size=(layers, count, rank, s.d_out)).astype(np.float32),
        }
        for m, s in SITES.items()
    }


def dense(factors):
    """The formula on deltas in float64: of each module, and of all together."""
    sums = {}
    for m, f in factors.items():
        a, b = (f[n].astype(np.float64)[list(SITES[m].layers)] for n in ("a", "b"))
        d = a @ b
        apart = np.sum((d - d.mean(axis=1, keepdims=True)) ** 2)
        sums[m] = np.array([apart, np.sum(d**2)])
    whole = sum(sums.values())
    return {m: x[0] / x[1] for m, x in sums.items()}, whole[0] / whole[1]


def test_shares_are_those_of_the_dense_formula():
    found = delta_variance.shares(drawn(), SITES)
    modules, whole = dense(drawn())
    assert found["modules"] == pytest.approx(modules, rel=0, abs=1e-10)
    assert found["whole"] == pytest.approx(whole, rel=0, abs=1e-10)
    assert 0.6 < found["whole"] < 0.9 and found["conditions"] == TASKS


def test_the_signs_of_conditions_are_no_delta():
    factors = drawn()
    signs = {"b": np.ones((1, TASKS, 1, 1), np.float32)}
    found = delta_variance.shares({"sign": signs, **factors}, SITES)
    assert found == delta_variance.shares(factors, SITES)


def test_equal_deltas_do_not_vary_even_by_other_factors():
    one = {
        m: {n: np.repeat(x[:, :1], TASKS, axis=1) for n, x in f.items()}
        for m, f in drawn().items()
    }
    for f in one.values():  # A c and B / c, exact in float32
        by = 2.0 ** np.arange(TASKS, dtype=np.float32)[None, :, None, None]
        f["a"], f["b"] = f["a"] * by, f["b"] / by
    found = delta_variance.shares(one, SITES)
    assert 0 <= max(found["whole"], *found["modules"].values()) < 1e-12
    zero = {m: {**f, "b": 0 * f["b"]} for m, f in one.items()}
    assert delta_variance.shares(zero, SITES)["whole"] == 0


def planted(constant: bool):
    """A run whose network ignores or looks up its task; layer 2 has static factors."""
    given = {"source": "task", "width": 4, "join": "sum"}
    config = tiny.settings(condition=given, hyper={"layers": (0, 1)})
    model = tiny.model(config, tasks=TASKS)
    params = tiny.shaken(tiny.params(config, model))
    if constant:
        kernel = params["cond"]["project"]["kernel"]
        params["cond"]["project"]["kernel"] = 0 * kernel
    trainable, frozen = model.split(params)
    arrays = TaskArrays({"which": np.arange(TASKS, dtype=np.int32)})
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    session = SimpleNamespace(settings=config, model=model, mesh=mesh, tasks=arrays)
    return SimpleNamespace(
        session=session, trainable=trainable, frozen=frozen, alpha=np.zeros(())
    )


def test_a_constant_network_has_0_and_one_that_looks_up_more():
    every = np.arange(TASKS)
    same = delta_variance.of_tasks(planted(constant=True), every)
    run = planted(constant=False)
    other = delta_variance.of_tasks(run, every)
    assert same["modules"].keys() == other["modules"].keys() == {"q", "v"}
    assert 0 <= same["whole"] < 1e-12 < 1e-3 < other["whole"] < 1
    assert delta_variance.of_tasks(run, every[:3])["conditions"] == 3
    assert delta_variance.of_tasks(run, every[:1]) == {}
    run.session.tasks = run.session.tasks._replace(single=True)
    assert delta_variance.of_tasks(run, every) == {}


def test_the_table_has_a_row_for_each_module_and_one_for_all():
    found = {"controls": {}, "margins": {}, "oracles": {}, "tasks": (), "split": "test"}
    (old,) = result_tables.audits(found)
    shares = delta_variance.shares(drawn(), SITES)
    first, deltas = result_tables.audits({**found, "delta_variance": shares})
    assert first == old and [row[0] for row in deltas.rows] == ["q", "up", "all"]
    assert f"| all | {shares['whole']:.4f} |" in metric_tables.to_markdown(deltas)
