"""What is fitted to descriptions before training: the whitening and the sign."""

import numpy as np
import pytest
from opposite_tasks import described, set_of

from hypelora_jax.config.settings import ConditionConfig, Settings
from hypelora_jax.data.layouts.task_batches import TaskArrays
from hypelora_jax.errors import UserError
from hypelora_jax.train.conditioning import wordings
from hypelora_jax.train.conditioning.task_conditions import moments

C = 12


def settings(**condition):
    return Settings(condition=ConditionConfig(source="text", **condition))


def three_parts(found):
    """The vectors of a layer of which all parts are alike, mirrored but the last."""
    each = [
        np.concatenate([x[:, ::-1], x[:, ::-1], x], axis=1)
        for x in found.choices["condition"]
    ]
    return TaskArrays({}, {"condition": each})


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("standardise", [True, False])
def test_the_sign_is_that_of_negations_that_were_not_trained(standardise, whiten):
    held_out = (1, 4, 11)
    tasks, found = set_of(np.random.default_rng(0), held_out)
    found = three_parts(found)
    own = settings(sign=1, standardise=standardise, whiten=whiten)
    standard = moments(found, tasks)["cond/standard"] if standardise else None
    leaves = wordings.leaves(own, tasks, found, standard)
    w, b = leaves["cond/sign/kernel"], leaves["cond/sign/bias"]
    axis = leaves["cond/sign/axis"]
    assert w.shape == (3 * C,) and axis.shape == (C,) and b.shape == ()
    np.testing.assert_allclose(np.linalg.norm(axis), 1, rtol=1e-12)
    known = np.concatenate(
        [x for k, x in enumerate(found.choices["condition"]) if k not in held_out]
    ).astype(np.float64)
    for k, x in enumerate(found.choices["condition"]):
        if standardise:
            x = (x - known.mean(axis=0)) / known.std(axis=0)
        else:
            parts = x.reshape(len(x), 3, C)
            root = np.sqrt(np.mean(parts**2, axis=2, keepdims=True))
            x = (parts / root).reshape(x.shape)
        if whiten:
            last = x[:, -C:] @ leaves["cond/standard/whitening"]
            x = np.concatenate([x[:, :-C], last], axis=1)
        assert ((b + x @ w > 0) == (k % 2 == 0)).all(), k


def test_the_axis_is_that_of_the_last_part_alone():
    tasks, found = set_of(np.random.default_rng(0))
    leaves = wordings.leaves(settings(sign=1), tasks, three_parts(found), None)
    other = three_parts(found)
    for x in other.choices["condition"]:
        x[:, 1 : 2 * C] = np.random.default_rng(1).normal(size=(len(x), 2 * C - 1))
    again = wordings.leaves(settings(sign=1), tasks, other, None)
    np.testing.assert_allclose(
        again["cond/sign/axis"], leaves["cond/sign/axis"], rtol=1e-6, atol=1e-9
    )


def test_after_whitening_wordings_of_a_task_differ_alike_in_all_directions():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(C, C)))[0]
    mixed = np.linspace(3, 30, C)[:, None] * axes  # some directions differ much more
    each = {k: rng.normal(size=C) + rng.normal(size=(500, C)) @ mixed for k in range(4)}
    kernel = wordings.whitening(each)
    np.testing.assert_allclose(kernel, kernel.T, atol=1e-12)
    whole = np.concatenate([*each.values()])
    np.testing.assert_allclose(np.mean((whole @ kernel) ** 2), np.mean(whole**2))
    within = np.mean([np.cov((x @ kernel).T, bias=True) for x in each.values()], axis=0)
    scale = np.trace(within) / C
    # SHRINKAGE is 0.1 and all variances are at least 9, so it changes about 1 % at most
    np.testing.assert_allclose(within / scale, np.eye(C), atol=0.02)


def test_what_tells_tasks_apart_stays_and_what_templates_share_shrinks():
    tasks, found = set_of(np.random.default_rng(0))
    each = described(found)
    template = np.random.default_rng(1).normal(size=(6, C))
    template[:, :-1] = 0  # templates differ in the last entry, and by much
    each = {k: x + 4 * template for k, x in each.items()}

    def ratio(vectors):
        means = np.stack([x.mean(axis=0) for x in vectors.values()])
        within = np.mean([x.var(axis=0).sum() for x in vectors.values()])
        return means.var(axis=0).sum() / within

    kernel = wordings.whitening(each)
    assert ratio({k: x @ kernel for k, x in each.items()}) > 5 * ratio(each)


def test_with_one_wording_a_task_nothing_is_whitened():
    each = {k: np.random.default_rng(k).normal(size=(1, C)) for k in range(5)}
    np.testing.assert_allclose(wordings.whitening(each), np.eye(C), atol=1e-12)


def test_tasks_that_are_held_out_or_have_many_wordings_do_not_change_it():
    tasks, found = set_of(np.random.default_rng(0), held_out=(3,))
    leaves = wordings.leaves(settings(whiten=True), tasks, found, None)
    choices = found.choices["condition"]
    choices[3] = np.random.default_rng(5).normal(size=(6, C)).astype(np.float32)
    choices[5] = np.tile(choices[5], (3, 1))
    again = wordings.leaves(settings(whiten=True), tasks, found, None)
    name = "cond/standard/whitening"
    np.testing.assert_allclose(again[name], leaves[name], atol=1e-9)


def test_without_descriptions_it_is_refused():
    tasks, _ = set_of(np.random.default_rng(0))
    for given in ((None, None), (tasks, TaskArrays({}, {}))):
        with pytest.raises(UserError, match="condition.source=text"):
            wordings.leaves(settings(whiten=True), *given, None)
