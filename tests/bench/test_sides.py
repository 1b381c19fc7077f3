"""Our side of a comparison, what is counted, and the check of both sides."""

import numpy as np
import pytest

from benchmarks import ours, torch_rival
from benchmarks.cases import conditions, gemm, growth, many, padding
from benchmarks.rows import Mismatch
from hypelora_jax.families import preset

TINY = "random:tiny"


def test_a_step_goes_on_with_its_own_state():
    step = ours.step(ours.ours(TINY), 4, 8, dropout=False)
    losses = [float(step.run()["loss"]) for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]
    assert step.seconds_to_compile > 0


def test_the_gradients_that_are_compared_are_not_zero():
    own = ours.ours(TINY)
    loss, found = torch_rival._ours(own, ours.batch_of(own.config, 4, 8))
    assert np.isfinite(loss)
    factors = {n: x for n, x in found.items() if "lora_" in n}
    assert len(factors) == own.config.layers * 2 * 2
    assert all(np.abs(x).max() > 0 for x in found.values())


GOOD = {"a": np.array([1.0, -2.0]), "b": np.array([0.5])}


def test_equal_losses_and_gradients_pass():
    torch_rival.check_close(0.7, 0.7001, GOOD, {n: x + 1e-6 for n, x in GOOD.items()})


@pytest.mark.parametrize(
    ("loss", "theirs", "line"),
    [
        (0.8, GOOD, "the loss is 0.8 here and 0.7 there"),
        (float("nan"), GOOD, "the loss is nan here"),
        (0.7, GOOD | {"a": np.array([1.0, -1.9])}, "gradients of a differ by 0.1, of"),
        (0.7, GOOD | {"b": np.array([np.nan])}, "gradients of b differ by nan"),
        (0.7, {"a": GOOD["a"]}, "only one side trains b"),
        (0.7, GOOD | {"c": GOOD["a"]}, "only one side trains c"),
    ],
)
def test_another_computation_is_refused(loss, theirs, line):
    with pytest.raises(Mismatch, match=line):
        torch_rival.check_close(loss, 0.7, GOOD, theirs)


def test_flops_by_hand():
    """2 layers of width 32 and 64 in between, 3 rows of 5 tokens, rank 8 on q and v."""
    n, t, d, ff, r = 15, 5, 32, 64, 8
    dense = 2 * n * (4 * d * d + 2 * d * ff)
    one_site = 2 * n * d * r  # of a product with A or with B
    forward = dense + 2 * (2 * n * t * d) + 2 * 2 * one_site
    # of each site: gradients of A, of B, of what lies between, of the input
    upper = dense + 4 * (2 * n * t * d) + 2 * 4 * one_site
    # neither the inputs of q, k, v nor the keys, nor the inputs of A
    lowest = upper - 3 * 2 * n * d * d - 2 * n * t * d - 2 * one_site
    head = 3 * 2 * 3 * (d * d + 2 * d)
    wanted = 2 * forward + upper + lowest + head
    assert gemm.flops(preset("tiny"), 3, 5) == wanted


def test_many_adapters_give_each_row_its_own(monkeypatch):
    monkeypatch.setattr(many, "MODEL", TINY)
    monkeypatch.setattr(many, "TOKENS", 8)
    many.many.cache_clear()
    found = many.many()
    one, all_, mixed = (
        many.way(found, *kind)() for kind in ((1,), (many.ROWS,), (many.ROWS, True))
    )
    many.many.cache_clear()
    np.testing.assert_allclose(all_[0], one[0], atol=1e-6)
    assert np.abs(all_[1:] - one[1:]).max() > 1e-4
    np.testing.assert_allclose(mixed[0], one[0], atol=1e-6)
    with pytest.raises(Mismatch, match="logits of 32 adapters differ by"):
        many._check(all_, one)


def test_conditions_make_a_step(monkeypatch):
    monkeypatch.setattr(conditions, "TOKENS", 8)
    for kind in ((8, True), (1, False)):
        step = conditions.step(*kind, model=TINY)
        assert np.isfinite(float(step.run()["loss"])) and step.mib > 0


def test_a_law_is_found_again():
    xs = [1.0, 2.0, 4.0, 8.0]
    found = growth.law(xs, [0.5 + 0.25 * x for x in xs], 1)
    np.testing.assert_allclose(found["coefficients"], [0.5, 0.25], atol=1e-9)
    assert found["largest_deviation"] < 1e-9
    found = growth.law(xs, [0.5 + x * x for x in xs], 1)
    assert found["largest_deviation"] > 0.1
    found = growth.law(xs, [0.5 + x * x for x in xs], 2)
    np.testing.assert_allclose(found["coefficients"], [0.5, 0, 1], atol=1e-9)


def test_each_quantity_grows(monkeypatch):
    """The steps differ in what the name says, and in nothing else."""
    made = []
    monkeypatch.setattr(
        ours, "step", lambda own, *shape, **_: made.append((own, shape))
    )
    monkeypatch.setattr(growth, "MODEL", TINY)
    ours.ours.cache_clear()
    for name in ("sites", "rank", "layers", "tokens", "width"):
        for value in growth.GROWTHS[name].values[:2]:
            growth.GROWTHS[name].step(value)
    (sites, ranks, layers, tokens, widths) = zip(made[::2], made[1::2], strict=True)
    ours.ours.cache_clear()
    assert [len(one.model.parts.lora_sites) for one, _ in sites] == [1, 2]
    assert [one.model.parts.rank for one, _ in ranks] == [2, 8]
    assert [one.config.layers for one, _ in layers] == [2, 4]
    assert [shape for _, shape in tokens] == [(8, 16, True), (8, 32, True)]
    assert [one.settings.hyper.widths for one, _ in widths] == [(64, 64), (256, 256)]


def test_padding_by_hand(monkeypatch):
    monkeypatch.setattr(padding, "BATCH", 2)
    lengths = np.array([3, 4, 4, 8])
    # two buckets, the first with three rows and so with one row of padding
    assert padding.bucketed(lengths, (4, 8)) == pytest.approx(1 - 19 / (8 + 8 + 16))
    one_batch = [padding.random(np.array([3, 4]))]
    assert one_batch == [pytest.approx(1 - 7 / 8)]
