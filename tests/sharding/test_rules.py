"""The rule tables: every leaf of every method, up to a pod of 256 chips."""

import jax
import pytest
import tiny
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from tiny import encoder, head

from hypelora_jax import families, trees
from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import OptimConfig
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.families.encoder.shardings import SHARDINGS
from hypelora_jax.sharding import rules
from hypelora_jax.train import optimizer
from hypelora_jax.train.state import init_state, state_shardings

TABLE = (*SHARDINGS, *rules.ADAPTER)
PAPER = {"widths": (2048, 2048), "cond_dim": 128}
BIG = {"width": 1024, "heads": 16, "depth": 2, "ff": 2048, "cond_dim": 128}


def abstract_mesh(*sizes):
    return AbstractMesh(sizes, ("data", "fsdp", "model"), (AxisType.Auto,) * 3)


def shapes(method, preset="roberta_large", **sections):
    """(trainable, frozen) of a real size, without weights."""
    hyper = BIG if method == "hyper_transformer" else PAPER
    sections["hyper"] = hyper | sections.get("hyper", {})
    sections["lora"] = {"rank": 8, "targets": "all-linear"}
    settings = tiny.settings(method, **sections)
    config = families.preset(preset)
    model = model_lib.build(settings, config, unnamed(2))

    def draw(key):
        base = {
            "backbone": encoder(config).init(key),
            "head": head(config, 2).init(key),
        }
        return model.init(key, base)

    return model.split(jax.eval_shape(draw, jax.random.key(0)))


@pytest.mark.parametrize("sizes", [(256, 1, 1), (16, 16, 1), (16, 4, 4), (1, 16, 16)])
@pytest.mark.parametrize("method", ["full", "lora", "hyper_mlp", "hyper_transformer"])
def test_roberta_large_on_256_chips(method, sizes):
    mesh = abstract_mesh(*sizes)
    trainable, frozen = shapes(method)
    tx = optimizer.optimizer(OptimConfig(), 10)
    state = jax.eval_shape(lambda p: init_state(p, tx, jax.random.key(0)), trainable)
    where = state_shardings(state, tx, mesh, SHARDINGS)
    assert jax.tree.structure(where) == jax.tree.structure(state)
    params = trees.union(trainable, frozen)
    of = trees.flatten(rules.shardings(params, mesh, SHARDINGS))
    ways = sizes[1] * sizes[2]
    for path, x in trees.flatten(params).items():
        part = of[path].shard_shape(x.shape)  # raises where it does not divide
        if path.startswith("backbone") and path.endswith(("kernel", "embedding")):
            assert x.size == ways * trees.count({"": jax.ShapeDtypeStruct(part, "f4")})
        if path.startswith("hyper/out") and path.endswith("kernel"):
            assert part[-1] * sizes[2] == x.shape[-1]


def test_moments_follow_their_parameter_and_the_rest_is_whole():
    trainable, _ = shapes("hyper_mlp")
    tx = optimizer.optimizer(OptimConfig(), 10)
    state = jax.eval_shape(lambda p: init_state(p, tx, jax.random.key(0)), trainable)
    where = state_shardings(state, tx, abstract_mesh(4, 2, 2), SHARDINGS)
    (adam,) = [s for s in where.opt_state if hasattr(s, "mu")]
    assert adam.mu == adam.nu == where.params
    assert adam.count.spec == where.step.spec == where.key.spec == P()
    head = trees.flatten(where.params)["hyper/out/1024x1024/b/kernel"]
    assert head.spec == P(None, "model")


def test_factors_follow_the_kernel_they_adapt():
    for module in ("q", "up", "o", "down"):
        kernel = rules.spec(f"backbone/layers/{module}/kernel", 3, SHARDINGS)
        a = rules.spec(f"lora/{module}/a", 3, SHARDINGS)
        b = rules.spec(f"lora/{module}/b", 3, SHARDINGS)
        assert (a[1], b[2]) == (kernel[1], kernel[2])
        assert a[2] is None and b[1] is None
        for same in (f"hyper/a/{module}", f"hyper/init/a/{module}"):
            assert rules.spec(same, 3, SHARDINGS) == a


def test_a_bias_of_each_slot_and_one_of_all_are_cut_alike():
    path = "hyper/out/32x32/a/bias"
    assert rules.spec(path, 1, SHARDINGS) == P("model")
    assert rules.spec(path, 2, SHARDINGS) == P(None, "model")


def test_errors_name_leaf_and_table():
    with pytest.raises(ValueError, match="layers/new/kernel.*shardings"):
        rules.spec("backbone/layers/new/kernel", 3, SHARDINGS)
    with pytest.raises(ValueError, match="cuts 2 axes, but lora/q/a has 1"):
        rules.spec("lora/q/a", 1, SHARDINGS)
    trainable, frozen = shapes("lora", preset="tiny")
    params = trees.union(trainable, frozen)
    with pytest.raises(UserError, match=r"fsdp x model = 3.*32 of backbone"):
        rules.shardings(params, abstract_mesh(1, 3, 1), SHARDINGS)


def test_every_rule_of_every_table_is_used():
    used = set()
    for method in ("lora", "hyper_mlp", "hyper_transformer", "full"):
        blend = {"a": "add", "b": "add"} if method == "hyper_mlp" else {}
        a = "fixed" if blend else "generated"
        for tree in shapes(method, "tiny", hyper={"a": a}, blend=blend):
            for path in trees.flatten(tree):
                used |= {
                    r for r, _ in (*SHARDINGS, *rules.ADAPTER) if rules.hits(r, path)
                }
    assert used == {rule for rule, _ in TABLE}
