"""Laws of the forms of the output: one shared head, rank rows, a diagonal, a core."""

import functools
import re

import documented
import jax
import jax.numpy as jnp
import numpy as np
import process
import pytest
import step_zero
import tiny
from scipy.special import erf
from sharding import sharded
from sharding.test_rules import abstract_mesh, shapes

from hypelora_jax import model as model_lib
from hypelora_jax import trees
from hypelora_jax.adapters import lora as lora_lib
from hypelora_jax.config.settings import MeshConfig, from_dict
from hypelora_jax.configs import common
from hypelora_jax.errors import UserError
from hypelora_jax.exchange import exports, imports
from hypelora_jax.families.encoder.shardings import SHARDINGS
from hypelora_jax.hyper import factors, mlp, transformer
from hypelora_jax.plan import estimate_table, program
from hypelora_jax.plan.estimate import estimate
from hypelora_jax.plan.topology import topology
from hypelora_jax.sharding import rules
from hypelora_jax.sharding.mesh import make_mesh
from hypelora_jax.train import optimizer
from hypelora_jax.train.state import init_state
from hypelora_jax.train.step import build_step
from hypelora_jax.types import Adapter

FORMS = ("shared", "rows", "diagonal", "core")
METHODS = ("hyper_mlp", "hyper_transformer")
CASES = [(method, form) for method in METHODS for form in FORMS]
ALPHA = jnp.zeros(())
RANK, CONDITIONS, WIDTH = 3, 3, 5
# Square sites and others, of ranks 1, 2 and 3.
LORA = {
    "targets": ("q", "v", "up", "down"),
    "rank_pattern": {"v": RANK, r"layer\.1\..*query": 1},
}
GIVEN = {"source": "given", "width": WIDTH, "join": "sum"}
ROWS = jnp.arange(6, dtype=jnp.int32) % CONDITIONS


def settings(method, form, **sections):
    sections["hyper"] = {"outputs": form} | sections.get("hyper", {})
    return tiny.settings(method, condition=GIVEN, lora=LORA, **sections)


@functools.cache
def ready(method, form, shake=True):
    """(settings, model, parameters), with noise on every leaf but the backbone's."""
    config = settings(method, form)
    model = tiny.model(config)
    params = tiny.params(config, model)
    own = {n: x for n, x in params.items() if n not in ("backbone", "head")}
    return config, model, {**params, **tiny.shaken(own)} if shake else params


def vectors(count=CONDITIONS):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(count, WIDTH)), jnp.float32)


def batch():
    return tiny.batch(len(ROWS)) | {"condition": vectors(), "row": ROWS}


def written(model, params, given):
    """Compact factors of the conditions, a_LUIR, or a_LIR of one condition."""

    @jax.jit
    def write(params, given):
        found = model_lib.conditions(model.parts, params, {"condition": given})
        ((_, made),) = model_lib.compact(model.parts, params, found, ALPHA)
        return made

    return jax.device_get(write(params, given))


@pytest.mark.parametrize(("method", "form"), CASES)
def test_shapes_ranks_and_a_delta_of_exactly_zero_at_step_0(method, form):
    _, model, params = ready(method, form, shake=False)
    made, layers = written(model, params, vectors()), tiny.CONFIG.layers
    assert set(made) == set(LORA["targets"]) and model.parts.hyper.slots == 12
    for m, f in made.items():
        site = model.parts.hyper_sites[m]
        assert f["a"].shape == (layers, CONDITIONS, site.d_in, RANK)
        assert f["b"].shape == (layers, CONDITIONS, RANK, site.d_out)
        assert not f["b"].any() and np.isfinite(f["a"]).all()
        for layer in range(layers):
            rank = RANK if m == "v" else 1 if (m, layer) == ("q", 1) else 2
            used = (f["a"][layer] != 0).all(axis=(0, 1))
            assert used.tolist() == [k < rank for k in range(RANK)]
    classify = jax.jit(model.classify)
    base = classify(params, Adapter({}), tiny.batch(len(ROWS)))
    np.testing.assert_allclose(tiny.predict(model, params, batch()), base, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_has_the_spread_of_lora_at_the_start(form):
    wide = {"outputs": form, "widths": (64, 64)}
    config = tiny.settings(hyper=wide, lora={"targets": LORA["targets"], "rank": 16})
    model = tiny.model(config)
    params = jax.jit(model.parts.hyper.init)(jax.random.key(0))
    cond = jax.random.normal(jax.random.key(1), (12, config.hyper.cond_dim))
    for f in jax.jit(model.parts.hyper.apply)(params, cond, ALPHA).values():
        got = np.sqrt(3 * f["a"].shape[1]) * np.asarray(f["a"]).std()
        np.testing.assert_allclose(got, 1, atol=0.2)


def stepper(config, model, steps):
    """(optimizer, step) of a run of so many steps, without masks of dropout."""
    tx = optimizer.optimizer(config.optim, steps)
    alpha = optimizer.blend_alpha(config.blend, steps)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return tx, build_step(model, tx, alpha, mesh, deterministic=True)


@pytest.mark.parametrize(("method", "form"), CASES)
def test_after_one_step_every_leaf_has_a_gradient(method, form):
    optim = {"lr": model_lib.METHODS[method].lr, "trunk_lr": common.TRUNK_RATE}
    optim |= {"b1": 0.0, "warmup": 0.0, "clip": 0.0}  # the moment is the gradient
    config = settings(method, form, optim=optim)
    model = tiny.model(config)
    trainable, frozen = model.split(tiny.params(config, model))
    tx, step = stepper(config, model, 10)
    state, seen = init_state(trainable, tx, jax.random.key(0)), []
    for _ in range(2):
        state, _ = step(state, frozen, batch())
        (adam,) = [s for s in state.opt_state if hasattr(s, "mu")]
        seen.append({p: np.abs(g).max() for p, g in trees.flatten(adam.mu).items()})
    first, second = seen
    for path, size in second.items():
        if not path.endswith("attn/k/bias"):  # zero in exact arithmetic
            assert size > 1e-7, path
    at_once = {p for p, size in first.items() if size > 0 and p.startswith("hyper")}
    # at step 0 only what B is made of moves
    of_b = "hyper/out/b/" if form in ("diagonal", "core") else "hyper/out/"
    assert at_once and all(p.startswith(of_b) for p in at_once), at_once
    assert not any(p.endswith("a/bias") for p in at_once)


@pytest.mark.parametrize(("method", "form"), CASES)
def test_conditions_together_equal_one_at_a_time_and_differ(method, form):
    _, model, params = ready(method, form)
    together, given = written(model, params, vectors()), vectors()
    for u in range(CONDITIONS):
        alone = written(model, params, given[u : u + 1])
        for path, x in trees.flatten(alone).items():
            got = trees.flatten(together)[path][:, u]
            np.testing.assert_allclose(got, x, atol=1e-5, err_msg=path)
    for m, f in together.items():
        delta = np.einsum("luir,luro->luio", f["a"], f["b"])
        assert np.abs(delta[:, 0] - delta[:, 1]).max() > 1e-4, m


def normal(x):
    """`factors.normalise` in float64."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)


def soft(x):
    return factors.KNEE * np.arcsinh(x / factors.KNEE)


def features_of(config, model, params, cond):
    """Features (S, F) of a trunk, in float64."""
    body = {n: x for n, x in params["hyper"]["trunk"].items() if n != "passes"}
    if config.method == "hyper_mlp":
        trunk = mlp.trunk(config.hyper.widths, cond.shape[-1])
    else:
        trunk = transformer.trunk(config.hyper, cond.shape[-1])
    return np.asarray(trunk.apply(body, cond), np.float64)


def by_passes(x, passes, head, site, s, rows):
    """(A, B) of the site in slot s, the s-th of its shape, a pass at a time."""

    def one(factor, k, size):
        e = passes["factor"][factor] + (passes["rank"][k] if rows else 0)
        h = normal(normal(x) + e)
        h_after = h @ passes["kernel"] + passes["bias"]
        h = normal(h + h_after * (1 + erf(h_after / np.sqrt(2))) / 2)
        scale = (2 if factor == 0 else 12) / len(h)
        return scale * (h @ head["ab"]["kernel"])[:size]

    d_in, d_out = site.d_in, site.d_out
    if rows:
        a = np.stack([one(0, k, d_in) for k in range(RANK)], axis=1)
        b = np.stack([one(1, k, d_out) for k in range(RANK)])
    else:
        a = one(0, 0, RANK * d_in).reshape(d_in, RANK)
        b = one(1, 0, RANK * d_out).reshape(RANK, d_out)
    a = a + head["a"]["bias"][s].reshape(d_in, RANK)
    return a, soft(b + head["b"]["bias"].reshape(RANK, d_out))


@pytest.mark.parametrize(("method", "form"), CASES)
def test_deltas_equal_the_dense_formula_in_float64(method, form):
    config, model, params = ready(method, form)
    given = vectors()[:1]
    got = written(model, params, given)
    found = model_lib.conditions(model.parts, params, {"condition": given})
    x_SF = features_of(config, model, params, found.vectors_USC[0])
    out = jax.tree.map(lambda x: np.asarray(x, np.float64), params["hyper"])
    out, passes = out["out"], out["trunk"].get("passes")
    slot, seen = 0, {}
    for m, site in model.parts.hyper_sites.items():
        for i in range(tiny.CONFIG.layers):
            if passes:
                name = f"{site.d_in}x{site.d_out}"
                s = seen[name] = seen.get(name, -1) + 1
                args = (x_SF[slot], passes, out[name], site, s)
                a, b = by_passes(*args, form == "rows")
            else:
                z = 12 / x_SF.shape[1] * normal(x_SF[slot]) @ out["z"]["kernel"]
                if form == "diagonal":
                    core = np.diag(1 + z)
                else:
                    core = np.eye(RANK) + z.reshape(RANK, RANK)
                a, b = out["a"][m][i] @ core, soft(12 * out["b"][m][i])
            rank = RANK if m == "v" else 1 if (m, i) == ("q", 1) else 2
            wanted = a[:, :rank] @ b[:rank]
            delta = got[m]["a"][i].astype(np.float64) @ got[m]["b"][i]
            np.testing.assert_allclose(delta, wanted, atol=1e-6, err_msg=f"{m} {i}")
            assert np.abs(wanted).max() > 1e-3
            slot += 1


@pytest.mark.parametrize(("method", "form"), CASES)
def test_merged_equals_factored(method, form):
    _, model, params = ready(method, form)
    rows = tiny.batch()
    factored = tiny.predict(model, params, rows | {"condition": vectors()[:1]})
    adapter = jax.jit(model.adapt)(params, {"condition": vectors()[:1]}, ALPHA)
    backbone = lora_lib.merge(params["backbone"], adapter.factors)
    merged, classify = {**params, "backbone": backbone}, jax.jit(model.classify)
    plain = np.asarray(classify(merged, Adapter({}), rows))
    np.testing.assert_allclose(factored, plain, atol=2e-5)
    assert np.abs(plain - classify(params, Adapter({}), rows)).max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_blending_applies_to_what_a_form_writes(form):
    blend = {"a": "add", "b": "add", "alpha": 0.5, "b_init": "lora"}
    config = tiny.settings(hyper={"outputs": form}, blend=blend)
    model, plain = (
        tiny.model(config),
        tiny.model(tiny.settings(hyper={"outputs": form})),
    )
    params = tiny.shaken(tiny.params(config, model))
    cond = params["cond"]["embedding"]
    got = model.parts.hyper.apply(params["hyper"], cond, 0.5)
    made = plain.parts.hyper.apply(params["hyper"], cond, 0.5)
    for module, f in got.items():
        for name, x in f.items():
            start = params["hyper"]["init"][name][module]
            wanted = 0.5 * made[module][name] + 0.5 * start
            np.testing.assert_allclose(x, wanted, atol=1e-6)


def soak(cases):
    return [pytest.param(*case, marks=pytest.mark.soak) for case in cases]


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_run_of_each_form_comes_back_equal(form, tmp_path):
    hyper = step_zero.HYPER | {"outputs": form}
    config = step_zero.settings("patterns_mlp", hyper=hyper)
    path = step_zero.save(tmp_path / "run", step_zero.session(config))
    (out,) = exports.export(str(path), str(tmp_path / "out"))
    back = imports.import_adapter(str(out), str(tmp_path / "back"))
    got, wanted = (step_zero.logits(r, step_zero.batch()) for r in (back, path))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    assert np.abs(got - step_zero.without_adapter(path, step_zero.batch())).max() > 1e-3


SHARDED = [*CASES[2:4], *soak([*CASES[:2], *CASES[4:]])]


@pytest.mark.parametrize(("method", "form"), SHARDED)
def test_sharded_equals_unsharded(method, form):
    sections = {"hyper": {"outputs": form}, "lora": {"targets": ("q", "down")}}
    config = sharded.settings(method, condition=GIVEN | {"join": "concat"}, **sections)
    got = sharded.train(config, (2, 2, 2), count=3)
    sharded.same(got, sharded.whole(config, count=3))


@pytest.mark.parametrize(("method", "form"), CASES)
def test_every_leaf_has_a_rule_and_wide_heads_are_cut(method, form):
    mesh = abstract_mesh(16, 4, 4)
    params = trees.union(*shapes(method, hyper={"outputs": form}))
    of = trees.flatten(rules.shardings(params, mesh, SHARDINGS))
    for path, x in trees.flatten(params["hyper"]["out"]).items():
        part = of[f"hyper/out/{path}"].shard_shape(x.shape)
        if path != "z/kernel":
            assert np.prod(part) * 4 == x.size, path


def conditional(i, rows=16):
    """A batch of random texts; the sign of a condition's first entry is the label."""
    rng = np.random.default_rng(i)
    given = rng.normal(size=(8, WIDTH)).astype(np.float32)
    given[:, 0] = np.sign(given[:, 0]) * (0.5 + np.abs(given[:, 0]))
    row = np.arange(rows, dtype=np.int32) % 8
    label = (given[row, 0] > 0).astype(np.int32)
    return tiny.batch(rows, seed=i) | {"condition": given, "row": row, "label": label}


# Steps of a short training; the Transformer's rates are lower.
STEPS = {"hyper_mlp": 60, "hyper_transformer": 120}


@pytest.mark.parametrize(("method", "form"), [*CASES[:4], *soak(CASES[4:])])
def test_a_short_training_learns_what_only_the_condition_says(method, form):
    rates = {"lr": model_lib.METHODS[method].lr, "trunk_lr": common.TRUNK_RATE}
    rates |= {"head_lr": common.HEAD_RATE}
    hyper = {"widths": (64, 64), "width": 32, "heads": 4, "ff": 64, "cond_dim": 16}
    config = settings(method, form, hyper=hyper, optim=rates)
    model = tiny.model(config)
    trainable, frozen = model.split(tiny.params(config, model))
    tx, step = stepper(config, model, STEPS[method])
    state, losses = init_state(trainable, tx, jax.random.key(0)), []
    for i in range(STEPS[method]):
        state, info = step(state, frozen, conditional(i))
        losses.append(float(info["loss"]))
    assert np.mean(losses[:6]) > 0.9, "three classes, of which two occur"
    # log 2 = 0.69 is the best that a model without the condition can reach
    assert np.mean(losses[-6:]) < 0.62, losses[-6:]


@pytest.mark.soak
def test_a_run_that_stops_goes_on_to_the_same_bits(tmp_path):
    args = ("train", *process.TINY, "--config.hyper.outputs=core")
    splits = ("calibration", "validation", "test")
    # step 4 is saved only when the save of step 2, in a thread, is complete
    process.survives_a_kill(tmp_path, 5, splits, *args)


@pytest.mark.parametrize(
    ("hyper", "part"),
    [
        ({"a": "fixed"}, "rows needs hyper.a=generated, but hyper.a is fixed"),
        ({"a": "random"}, "rows needs hyper.a=generated, but hyper.a is random"),
        ({"init": "reference"}, "rows needs hyper.init=zero, but hyper.init is ref"),
    ],
)
def test_what_a_form_cannot_write_is_refused(hyper, part):
    with pytest.raises(UserError, match=part):
        from_dict({"hyper": {"outputs": "rows"} | hyper})


# A row of the table in docs/method.md: form, output head, numbers of two networks.
COUNTS = re.compile(r"^\| `(\w+)` \|.*\| ([\d,]+) \| ([\d,]+) \|$", re.M)


@pytest.mark.parametrize("form", ("full", *FORMS))
def test_the_documentation_has_the_parameters_that_are_planned(form):
    page = (documented.ROOT / "docs/method.md").read_text()
    counts = {name: numbers for name, *numbers in COUNTS.findall(page)}
    assert set(counts) == {"full", *FORMS}
    for method, wanted in zip(METHODS, counts[form], strict=True):
        tree = {"method": method, "hyper": {"outputs": form}}
        step = program.build(from_dict(tree), topology("cpu-1"))
        got = trees.count(step.arguments[0].params["hyper"])
        assert f"{got:,}" == wanted, (method, got)


def test_the_plan_counts_what_trains():
    tree = {"hyper": {"outputs": "diagonal"}, "data": {"max_length": 16}}
    smoke = from_dict(tree | {"model": {"path": "random:tiny"}})
    where = topology("cpu-1")
    found = estimate(smoke, where)
    step = program.build(smoke, where)
    wanted = {n: trees.count(x) for n, x in step.arguments[0].params.items()}
    assert estimate_table.as_dict(found, where, [])["trained_parameters"] == wanted
    rows = dict(estimate_table.table(found, where).rows)
    assert rows["  hyper"] == f"{wanted['hyper']:,}" and wanted["hyper"] > 1000
    assert rows["trained parameters"] == f"{sum(wanted.values()):,}"
