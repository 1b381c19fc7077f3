import jax
import numpy as np
import pytest

from hypelora_jax.calibration import metrics
from hypelora_jax.calibration.metrics import sums


def drawn(n=333, classes=4):
    chance = np.random.default_rng(0)
    return chance.dirichlet(np.full(classes, 0.5), n), chance.integers(0, classes, n)


def test_the_sums_are_those_of_a_sharded_evaluation():
    probs, labels = drawn(320)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    p, y = (jax.device_put(x, rows) for x in (probs.astype(np.float32), labels))
    got = jax.jit(lambda *args: sums.compute(sums.of_rows(*args)))(p, y)
    alone = metrics.compute_all(probs.astype(np.float32), labels)
    for name, value in got.items():
        assert float(value) == pytest.approx(alone[name], abs=2e-6), name


def test_parts_of_the_brier_score_sum_to_it():
    probs, labels = drawn()
    got = metrics.compute_all(probs, labels)
    part = {k.removeprefix("brier_"): v for k, v in got.items() if "brier_" in k}
    total = part["reliability"] - part["resolution"] + part["uncertainty"]
    assert total + part["within_bins"] == pytest.approx(got["brier"], abs=1e-14)
    # by hand: one bin a class, all examples alike, so nothing is left within bins
    probs, labels = np.array([[0.75, 0.25]] * 4), np.array([0, 0, 1, 1])
    held = metrics.compute_all(probs, labels)
    wanted = {"reliability": 2 / 16, "resolution": 0, "uncertainty": 0.5}
    for name, value in wanted.items():
        assert held[f"brier_{name}"] == pytest.approx(value), name
    assert held["brier_within_bins"] == pytest.approx(0)
