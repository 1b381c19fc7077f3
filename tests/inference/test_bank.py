"""A bank of adapters: mixed batches, slots, and weights that are merged."""

import dataclasses
import gc

import jax
import numpy as np
import pytest
import step_zero
import tiny

from hypelora_jax import trees
from hypelora_jax.calibration import calibrators
from hypelora_jax.evaluate import evaluation
from hypelora_jax.inference import bank, predictor
from hypelora_jax.inference.single_run import merged
from hypelora_jax.plan.hlo import parse
from hypelora_jax.train.divergence import NotFinite
from hypelora_jax.types import Adapter

ALONE = [f"{n} " + "wor " * (n % 3) for n in range(8)]
TEXTS = [(text,) for text in ALONE]  # as checked texts, all of one length bucket
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: (
        COMPILED.append(event) if event.endswith("backend_compile_duration") else None
    )
)


def varied(path, mode, count, **more):
    """Run folders whose own numbers differ, factors and heads alike."""
    made = step_zero.session(step_zero.settings(mode, **more))
    params = {**made.trainable}
    out = []
    for i in range(count):
        own = made._replace(trainable=tiny.shaken(params, seed=i, by=0.2))
        out.append(str(step_zero.save(path / f"{mode}_{i}", own, 1.0 + i)))
    return out


@pytest.fixture(scope="module", params=["lora", "mlp"])
def runs(request, tmp_path_factory):
    folders = varied(tmp_path_factory.mktemp("runs"), request.param, 4)
    return {f"r{i}": predictor.load(f, batch_sizes=(8,)) for i, f in enumerate(folders)}


@pytest.fixture(scope="module")
def wanted(runs):
    return {name: one.predict(ALONE) for name, one in runs.items()}


def entries_of(runs, slots):
    found = bank.entries_of(runs, lambda one: None, slots, single=True)
    assert len({entry.bank for entry in found.values()}) == 1
    return found


def answers(entries, names):
    """Answers of one batch whose row i belongs to names[i]."""
    own = entries[names[0]].predictor
    encoded = predictor.tokenise(own, TEXTS)
    data = predictor.token_dataset(own, encoded.ids, encoded.types)
    asked = [entries[name] for name in names]
    return asked[0].bank.answer(asked, TEXTS, data, 8)


def check(found, names, wanted):
    for i, (got, name) in enumerate(zip(found, names, strict=True)):
        want = wanted[name][i]
        assert got["label"] == want["label"]
        assert got["probs"] == pytest.approx(want["probs"], abs=1e-5)


def test_a_row_is_answered_as_if_its_run_were_alone(runs, wanted):
    entries = entries_of(runs, 4)
    for names in (["r0", "r1", "r2", "r3"] * 2, ["r2"] * 8, ["r3", "r1"] * 4):
        check(answers(entries, names), names, wanted)
    assert wanted["r0"][0]["probs"] != pytest.approx(wanted["r1"][0]["probs"], abs=1e-3)


def test_devices_share_the_rows_and_the_factors(tmp_path):
    given = {"mesh": {"data": 2, "fsdp": 2, "model": 2}}
    folders = varied(tmp_path, "lora", 3, **given)
    runs = {f"r{i}": predictor.load(f, batch_sizes=(8,)) for i, f in enumerate(folders)}
    wanted = {name: one.predict(ALONE) for name, one in runs.items()}
    entries = entries_of(runs, 2)
    own = entries["r0"].bank
    where = [x.sharding for x in jax.tree.leaves(own._stack)]
    for names in (["r0", "r1"] * 4, ["r2", "r1"] * 4):
        check(answers(entries, names), names, wanted)
    assert [x.sharding for x in jax.tree.leaves(own._stack)] == where
    assert not all(one.is_fully_replicated for one in where)


def test_the_least_recently_used_run_makes_room_and_comes_back(runs, wanted):
    entries = entries_of(runs, 2)
    own = entries["r0"].bank
    numbers = {entry.number: name for name, entry in entries.items()}

    def ask(*names):
        names = [*names] * (8 // len(names))
        check(answers(entries, names), names, wanted)
        return [numbers[number] for number in own._slot]

    assert ask("r0") == ["r0"]
    assert ask("r1") == ["r0", "r1"]
    assert ask("r0") == ["r1", "r0"]
    assert ask("r2") == ["r0", "r2"], "r1 was used least recently"
    assert ask("r1", "r2") == ["r2", "r1"], "one of the same batch makes no room"
    assert ask("r0", "r1") == ["r1", "r0"]
    with pytest.raises(ValueError, match="3 runs in one batch; expected at most 2"):
        answers(entries, ["r0", "r1", "r2", "r0"] * 2)


def test_a_swap_is_in_place_and_compiles_nothing(runs, wanted):
    entries = entries_of(runs, 1)
    own = entries["r0"].bank
    own.warm(entries["r0"])
    before = [x.unsafe_buffer_pointer() for x in buffers(own)]
    size = live()
    COMPILED.clear()
    for i in range(12):
        name = f"r{i % 4}"
        check(answers(entries, [name] * 8), [name] * 8, wanted)
    assert COMPILED == []
    assert [x.unsafe_buffer_pointer() for x in buffers(own)] == before
    assert live() == size


def buffers(own):
    """The arrays of a bank on their first devices."""
    leaves = jax.tree.leaves(own._stack)
    return [leaf.addressable_shards[0].data for leaf in leaves]


def live():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


def test_a_run_is_opened_like_another_without_compiling(runs, wanted):
    like, path = runs["r0"], str(runs["r1"].fitted.run.path)
    edges = like.edges
    bank.arrays_of(like)
    COMPILED.clear()
    one = predictor.load(path, batch_sizes=(8,), like=like.fitted)
    bank.arrays_of(one)
    assert COMPILED == []
    own = {8: evaluation.answerer(one.fitted, edges, 8)}
    one = one._replace(edges=edges, answerers=own)
    check(one.predict(ALONE), ["r1"] * 8, wanted)


def test_a_run_in_a_bank_has_no_arrays_of_its_own_on_the_device(runs):
    entry = entries_of(runs, 4)["r1"]
    fitted = entry.predictor.fitted
    own = {n: x for n, x in fitted.frozen.items() if n != "backbone"}
    leaves = jax.tree.leaves((fitted.trainable, own))
    assert leaves and not any(isinstance(x, jax.Array) for x in leaves)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(entry.arrays()))


def test_rows_of_a_run_that_diverged_harm_no_other(runs, wanted):
    bad = runs["r1"]
    nothing = jax.tree.map(lambda x: x * np.nan, bad.fitted.trainable)
    bad = bad._replace(fitted=bad.fitted._replace(trainable=nothing))
    entries = entries_of(runs | {"bad": bad}, 3)
    names = ["r0", "bad", "r2", "r2", "bad", "r0", "r0", "r2"]
    with pytest.raises(NotFinite) as found:
        answers(entries, names)
    assert found.value.rows.tolist() == [1, 4]
    names = ["r0", "r3"] * 4
    check(answers(entries, names), names, wanted)


def test_probabilities_that_are_not_finite_are_those_of_their_rows(runs):
    tiny_t = calibrators.Temperature(5e-324)
    bad = runs["r1"]
    bad = bad._replace(fitted=bad.fitted._replace(calibrator=tiny_t))
    entries = entries_of(runs | {"bad": bad}, 2)
    with pytest.raises(NotFinite) as found, np.errstate(all="ignore"):
        answers(entries, ["r0", "r0", "bad", "r0", "r0", "bad", "r0", "r0"])
    assert found.value.rows.tolist() == [2, 5]


def test_only_runs_of_equal_shapes_share_a_bank(tmp_path):
    folders = varied(tmp_path, "lora", 2) + varied(tmp_path, "down_alone", 1)
    pool = {f: predictor.load(f, batch_sizes=(8,)) for f in folders}
    found = bank.entries_of(pool, lambda one: None, 32, single=False)
    assert list(found) == folders[:2]
    assert found[folders[0]].bank.slots == 2, "no more slots than runs"
    found = bank.entries_of(pool, lambda one: None, 32, single=True)
    assert found[folders[2]].bank is not found[folders[0]].bank
    assert found[folders[2]].bank.slots == 32


@pytest.mark.parametrize("kind", ["mc_dropout", "none"])
def test_a_run_that_needs_several_passes_is_in_no_bank(tmp_path, kind):
    given = {"uncertainty": {"kind": kind, "samples": 2}}
    run = step_zero.run_folder(tmp_path / "run", **given)
    one = predictor.load(str(run), batch_sizes=(8,))
    assert bank.mixes(one) is (kind == "none")
    assert (merged(one) is one) is (kind != "none")


# Merged weights


def instructions(one):
    """Instructions of the program that answers 8 rows of 16 tokens."""
    fitted = one.fitted
    params = trees.union(fitted.trainable, fitted.frozen)
    adapter = fitted.forward.adapt(params, fitted.alpha, {})
    rows = tiny.batch(8, 16)
    rows = {name: rows[name] for name in ("ids", "mask", "types")}

    def count(adapter):
        made = fitted.forward.classify.lower(params, adapter, rows).compile()
        return sum(len(body) for body in parse(made.as_text())[0].values())

    return count(adapter), count(Adapter({}))


def test_merged_weights_compile_to_the_program_of_the_bare_backbone(runs, wanted):
    one = merged(runs["r2"])
    mine, bare = instructions(one)
    assert mine == bare
    assert instructions(runs["r2"])[0] > bare, "with factors there is more to do"
    edges, fitted = one.edges, one.fitted
    one = one._replace(answerers={8: evaluation.answerer(fitted, edges, 8)})
    check(one.predict(ALONE), ["r2"] * 8, wanted)


def test_a_narrow_dtype_is_not_merged(tmp_path):
    config = step_zero.settings()
    half = dataclasses.replace(config.model, dtype="bfloat16")
    config = dataclasses.replace(config, model=half)
    run = step_zero.save(tmp_path / "run", step_zero.session(config))
    one = predictor.load(str(run), batch_sizes=(8,))
    assert merged(one) is one
