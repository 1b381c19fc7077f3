"""Adapters of peft: out, in and out again to the bit, and what is refused."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import step_zero
import tiny
from parity import golden
from safetensors.numpy import load_file, save_file

import hypelora_jax
from hypelora_jax import cli, families, files, trees
from hypelora_jax.adapters.sites import Site
from hypelora_jax.config.json_fields import JsonFields
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.exchange import export_record, exports, imports
from hypelora_jax.families import preset
from hypelora_jax.interop import (
    adapter,
    base,
    huggingface,
    peft,
    peft_config,
    peft_names,
)
from hypelora_jax.types import Adapter

GOLDEN = golden.ROOT / "peft_adapter"
BASE = golden.ROOT / "base"


def fields_of(path) -> dict:
    return json.loads((path / peft.CONFIG).read_text())


def same_tensors(left, right) -> None:
    one, two = load_file(left / peft.TENSORS), load_file(right / peft.TENSORS)
    assert one.keys() == two.keys()
    for name, x in one.items():
        np.testing.assert_array_equal(two[name], x, err_msg=name, strict=True)


# every mode is loaded by peft itself in tests/oracle/test_peft.py
LONG = [("mlp_blended", "binary"), ("hyper_and_static", "binary")]
LONG += [("uneven", "binary"), ("rslora", "binary"), ("transformer", "three")]
CASES = [("lora", "binary"), ("mlp_random", "regression")]
CASES += [pytest.param(*case, marks=pytest.mark.soak) for case in LONG]


@pytest.mark.parametrize(("mode", "task"), CASES)
def test_out_in_and_out_again_is_equal_to_the_bit(mode, task, tmp_path):
    run = step_zero.run_folder(tmp_path / "run", mode, task)
    (first,) = exports.export(str(run), str(tmp_path / "first"))
    back = imports.import_adapter(str(first), str(tmp_path / "back"))
    (second,) = exports.export(str(back), str(tmp_path / "second"))
    same_tensors(first, second)
    one, two = fields_of(first), fields_of(second)
    differ = {n for n in one if one[n] != two[n]}
    assert differ <= {"base_model_name_or_path"}
    got, wanted = (step_zero.logits(r, step_zero.batch()) for r in (back, run))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    if mode.startswith("lora"):
        np.testing.assert_array_equal(got, wanted)
    plain = {"alpha_pattern": {}, "rank_pattern": {}, "bias": "none"}
    assert plain.items() <= one.items() and one["task_type"] == "SEQ_CLS"


@pytest.mark.parametrize(
    "mode", ["patterns", pytest.param("patterns_mlp", marks=pytest.mark.soak)]
)
def test_ranks_and_alphas_of_sites_leave_and_come_back_to_the_bit(mode, tmp_path):
    run = step_zero.run_folder(tmp_path / "run", mode)
    (first,) = exports.export(str(run), str(tmp_path / "first"))
    fields, layer = fields_of(first), "roberta.encoder.layer."
    q, v = "attention.self.query", "attention.self.value"
    values = {f"{layer}{i}.{v}": 4 for i in (0, 1)}
    assert fields["rank_pattern"] == {f"{layer}0.{q}": 1} | values
    alphas = {f"{layer}{i}.{q}": 7.5 for i in (0, 1)}
    assert fields["alpha_pattern"] == alphas | {f"{layer}1.{v}": 2}
    assert (fields["r"], fields["lora_alpha"]) == (3, 5)
    shapes = {n: x.shape for n, x in load_file(first / peft.TENSORS).items()}
    of_up = [n for n in shapes if "intermediate" in n]
    assert len(of_up) == 2 and all(".layer.1." in n for n in of_up)
    assert shapes[f"{ROOT}{layer}0.{q}.lora_A.weight"] == (1, 32)
    assert shapes[f"{ROOT}{layer}1.{v}.lora_B.weight"] == (32, 4)
    back = imports.import_adapter(str(first), str(tmp_path / "back"))
    (second,) = exports.export(str(back), str(tmp_path / "second"))
    same_tensors(first, second)
    assert fields_of(second)["rank_pattern"] == fields["rank_pattern"]
    assert fields_of(second)["alpha_pattern"] == fields["alpha_pattern"]
    got, wanted = (step_zero.logits(r, step_zero.batch()) for r in (back, run))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "task"),
    [
        ("hyper_and_static", "three"),
        ("patterns_mlp", "three"),
        pytest.param("uneven", "regression", marks=pytest.mark.soak),
    ],
)
def test_the_merged_folder_gives_the_runs_logits(mode, task, tmp_path):
    run = step_zero.run_folder(tmp_path / "run", mode, task)
    (merged,) = exports.export(str(run), str(tmp_path / "merged"), "merged")
    config = json.loads((merged / "config.json").read_text())
    labels = step_zero.TASKS[task].labels or ("LABEL_0",)
    assert config["id2label"] == {str(i): x for i, x in enumerate(labels)}
    held = base.resolve(str(merged))
    params = base.load(held, len(labels), jax.random.key(9))
    opened = evaluation.open_fitted(str(run))
    batch = step_zero.batch()
    got = jax.jit(opened.session.model.classify)(params, Adapter({}), batch)
    np.testing.assert_allclose(got, step_zero.logits(run, batch), rtol=0, atol=1e-5)


def test_the_golden_adapter_comes_in_and_goes_out_key_for_key(tmp_path):
    back = tmp_path / "back"
    flags = [f"--adapter={GOLDEN}", f"--model={BASE}", f"--workdir={back}"]
    assert cli.main(["import", *flags]) == 0
    run = evaluation.open_fitted(str(back))
    params = trees.union(run.trainable, run.frozen)
    got = tiny.predict(run.session.model, params, golden.batch(), run.alpha)
    wanted = golden.load("baseline_lora.npz")["end_logits"]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    out = tmp_path / "out"
    assert cli.main(["export", f"--workdir={back}", f"--output={out}"]) == 0
    same_tensors(GOLDEN, out)
    ours, theirs = fields_of(out), fields_of(GOLDEN)
    for name in ("r", "lora_alpha", "use_rslora", "task_type", "peft_type", "bias"):
        assert ours[name] == theirs[name]
    for name in ("target_modules", "modules_to_save"):
        assert sorted(ours[name]) == sorted(theirs[name])


def bert_folder(path):
    """A tiny BERT: its own words, a pooler, no classifier."""
    config = preset("tiny")
    config = dataclasses.replace(config, family="bert", pad_id=0, type_vocab=2)
    backbone = tiny.encoder(config).init(jax.random.key(0))
    head = tiny.head(config, 2).init(jax.random.key(1))
    tensors = huggingface.to_hf(config, {"backbone": backbone, "head": head})
    huggingface.write_model(path, huggingface.make_config(config), tensors, "float32")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    (path / "vocab.txt").write_text("\n".join(words))
    return path


def test_a_bert_saves_its_pooler_and_merges_factors_on_it(tmp_path):
    model = bert_folder(tmp_path / "bert")
    run = step_zero.run_folder(tmp_path / "run", model=str(model))
    (first,) = exports.export(str(run), str(tmp_path / "first"))
    assert "pooler" in fields_of(first)["modules_to_save"]
    names = sorted(n for n in load_file(first / peft.TENSORS) if "pooler" in n)
    assert names == [f"base_model.model.bert.pooler.dense.{x}" for x in _LEAVES]
    # as target_modules=["dense"] does: factors on the pooler, which is not saved
    tensors = load_file(first / peft.TENSORS)
    kept = {n: x for n, x in tensors.items() if "pooler" not in n}
    rng, root = np.random.default_rng(0), "base_model.model.bert.pooler.dense"
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((3, 32), (32, 3)))
    kept |= {f"{root}.lora_A.weight": a, f"{root}.lora_B.weight": b}
    save_file(kept, first / peft.TENSORS)
    fields = fields_of(first) | {"modules_to_save": ["classifier"]}
    fields |= {"target_modules": ["query", "value", "pooler.dense"]}
    (first / peft.CONFIG).write_text(json.dumps(fields))
    back = imports.import_adapter(str(first), str(tmp_path / "back"))
    got = np.asarray(
        evaluation.open_fitted(str(back)).trainable["head"]["dense"]["kernel"]
    )
    own = huggingface.read_tensors(model)["bert.pooler.dense.weight"]
    np.testing.assert_allclose(got, (own + 5 / 3 * b @ a).T, rtol=1e-5, atol=1e-6)


_LEAVES = ("bias", "weight")


def checked(fields: dict) -> peft_config.PeftConfig:
    return peft_config.read(JsonFields(peft.CONFIG, fields))


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_of_single_sites(rslora):
    config = base.resolve("random:tiny").config
    rng = np.random.default_rng(0)
    root, tensors = "roberta.encoder.layer.", {}
    ranks = {"0.attention.self.query": 2, "1.attention.self.query": 4}
    for site, r in ranks.items():
        for f, shape in (("A", (r, 32)), ("B", (32, r))):
            x = rng.normal(size=shape).astype(np.float32)
            tensors[f"{root}{site}.lora_{f}.weight"] = x
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": rslora}
    fields |= {"rank_pattern": {"layer.0.attention.self.query": 2}}
    fields |= {"alpha_pattern": {r"0\.attention.self.query": 3}}
    fields |= {"target_modules": ["query"]}
    got = adapter.from_peft(config, checked(fields), tensors)
    assert got.lora.rank == 4 and got.sites["q"].layers == (0, 1)
    root_of = np.sqrt if rslora else (lambda r: r)
    for layer, (alpha, r) in enumerate(((3, 2), (8, 4))):
        site = f"{root}{layer}.attention.self.query"
        a, b = (tensors[f"{site}.lora_{f}.weight"] for f in "AB")
        delta = alpha / root_of(r) * got.factors["q"]["a"][layer]
        delta = delta @ got.factors["q"]["b"][layer]
        np.testing.assert_allclose(delta, alpha / root_of(r) * (b @ a).T, 1e-4, 1e-5)
    short = f"{root}0.attention.self.query"
    assert got.lora.rank_pattern == ((short, 2),)
    assert got.lora.alpha_pattern == ((short, 3),)
    head = {"dense": _zeros(32, 32), "out": _zeros(32, 2)}
    out, found = peft.to_peft(config, [(got.sites, got.factors)], head)
    fields = peft.make_config(got.lora, got.sites, found, config, "x")
    assert fields["rank_pattern"] == {short: 2}
    assert fields["alpha_pattern"] == {short: 3}
    again = adapter.from_peft(
        config, checked(fields), {peft_names.plain(n): x for n, x in out.items()}
    )
    for f in "ab":
        np.testing.assert_array_equal(again.factors["q"][f], got.factors["q"][f])


BERT_ENDS = "query key value attention.output.dense intermediate.dense output.dense"
DISTILBERT_ENDS = "q_lin k_lin v_lin out_lin lin1 lin2"


@pytest.mark.parametrize(
    ("name", "ends", "pattern"),
    [
        ("bert", BERT_ENDS, "encoder.layer"),
        ("xlm-roberta", BERT_ENDS, "encoder.layer"),
        ("distilbert", DISTILBERT_ENDS, "transformer.layer"),
    ],
)
def test_ends_of_names_are_the_shortest_of_their_own(name, ends, pattern):
    family = families.FAMILIES[name]
    assert list(peft_names.endings(family).values()) == ends.split()
    assert peft_names.layers_pattern(family) == pattern


@pytest.mark.parametrize(("name", "listed"), [("roberta", False), ("distilbert", True)])
def test_modules_are_listed_where_the_list_means_no_others(name, listed):
    sites = {"down": Site(6, 6, (0, 1))}
    said = peft_names.targets(sites, families.FAMILIES[name], 2)["target_modules"]
    assert said == ["lin2"] if listed else re.search("output", said)


def _zeros(i, o):
    return {"kernel": np.zeros((i, o), np.float32), "bias": np.zeros(o, np.float32)}


def test_calibrated_divides_the_last_layer(tmp_path):
    run = step_zero.run_folder(tmp_path / "run", "mlp", "three", temperature=1.7)
    (plain,) = exports.export(str(run), str(tmp_path / "plain"))
    (divided,) = exports.export(str(run), str(tmp_path / "divided"), calibrated=True)
    one, two = load_file(plain / peft.TENSORS), load_file(divided / peft.TENSORS)
    for name, x in one.items():
        by = 1.7 if ".out_proj." in name else 1.0
        np.testing.assert_allclose(two[name], x / by, rtol=1e-6)
    assert "divided by the temperature 1.7" in (divided / "README.md").read_text()
    assert "logits / 1.7" in (plain / "README.md").read_text()
    assert "logits / " not in (divided / "README.md").read_text()
    pairs, replies = [("ab", "cd")], []
    for name in (plain, divided):
        back = imports.import_adapter(str(name), str(tmp_path / f"back_{name.name}"))
        replies += hypelora_jax.load(str(back)).predict(pairs)
    replies += hypelora_jax.load(str(run)).predict(pairs)
    for answer in replies[1:]:
        for label, p in replies[0]["probs"].items():
            assert answer["probs"][label] == pytest.approx(p, abs=1e-6)


def test_calibrated_is_refused_where_no_division_does_it(tmp_path, monkeypatch):
    run = str(step_zero.run_folder(tmp_path / "run"))
    with pytest.raises(UserError, match="no temperature was fitted"):
        exports.export(run, str(tmp_path / "out"), calibrated=True)
    monkeypatch.setattr(export_record, "temperature_of", lambda run: (None, "isotonic"))
    with pytest.raises(
        UserError, match="'isotonic', which cannot be written as a division"
    ):
        exports.export(run, str(tmp_path / "out"), calibrated=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run"], "nothing half written"
    monkeypatch.undo()
    score = str(step_zero.run_folder(tmp_path / "score", task="regression"))
    with pytest.raises(UserError, match="this run predicts a number"):
        exports.export(score, str(tmp_path / "out"), calibrated=True)


def test_folders_that_hold_something_are_left_alone(tmp_path, capsys):
    run = step_zero.run_folder(tmp_path / "run")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    assert cli.main(["export", f"--workdir={run}", f"--output={full}"]) == 2
    flags = [f"--adapter={GOLDEN}", f"--model={BASE}", f"--workdir={full}"]
    assert cli.main(["import", *flags]) == 2
    assert capsys.readouterr().err.count("is not empty") == 2
    assert [p.name for p in full.iterdir()] == ["thesis.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert exports.export(str(run), str(empty)) == [files.absolute(empty)]


def test_methods_without_an_adapter_leave_merged_only(tmp_path):
    config = step_zero.settings(method="head")
    run = str(step_zero.save(tmp_path / "run", step_zero.session(config)))
    with pytest.raises(UserError, match="trains no adapter; expected --format=merged"):
        exports.export(run, str(tmp_path / "out"))
    exports.export(run, str(tmp_path / "out"), "merged")
    with pytest.raises(UserError, match="format is 'onnx'; expected one of peft"):
        exports.export(run, str(tmp_path / "other"), "onnx")


def test_seeds_and_conditions_go_out_one_some_or_all(tmp_path):
    seeds = tmp_path / "seeds"
    for i in range(3):
        step_zero.run_folder(seeds / f"seed_{i}")
    out = exports.export(str(seeds), str(tmp_path / "all"))
    assert [p.name for p in out] == ["seed_0", "seed_1", "seed_2"]
    out = exports.export(str(seeds), str(tmp_path / "two"), only=["seed_0", "seed_2"])
    assert [p.name for p in out] == ["seed_0", "seed_2"]
    with pytest.raises(UserError, match="--only is 'seed_7'; expected one of seed_0"):
        exports.export(str(seeds), str(tmp_path / "none"), only=["seed_7"])
    config = step_zero.settings("mlp", condition={"source": "given", "width": 5})
    made = step_zero.session(config)
    run = str(step_zero.save(tmp_path / "given", made))
    vectors = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    named = dict(zip(("film", "news", "tweet-1"), vectors, strict=True))
    out = exports.export(run, str(tmp_path / "conditions"), conditions=named)
    assert [p.name for p in out] == list(named)
    (one,) = exports.export(run, str(tmp_path / "one"), only=["news"], conditions=named)
    same_tensors(out[1], one)
    b = "base_model.model.roberta.encoder.layer.0.attention.self.query.lora_B.weight"
    first, second = (load_file(p / peft.TENSORS)[b] for p in out[:2])
    assert np.abs(first - second).max() > 0
    with pytest.raises(UserError, match="expected --conditions=FILE.npz"):
        exports.export(run, str(tmp_path / "nothing"))
    for name in ("../up", ".hidden", "a/b", ""):
        with pytest.raises(UserError, match="cannot name a folder"):
            exports.export(run, str(tmp_path / "no"), conditions={name: vectors[0]})
    with pytest.raises(UserError, match="reads no conditions"):
        exports.export(str(seeds / "seed_0"), str(tmp_path / "no"), conditions=named)


def adapter_with(tmp_path, tensors=None, **fields):
    """The golden adapter with other fields, or other tensors."""
    path = tmp_path / "changed"
    shutil.copytree(GOLDEN, path)
    (path / peft.CONFIG).write_text(json.dumps(fields_of(GOLDEN) | fields))
    if tensors:
        kept = load_file(GOLDEN / peft.TENSORS) | tensors
        kept = {n: np.ascontiguousarray(x) for n, x in kept.items()}
        save_file(kept, path / peft.TENSORS)
    return path


ROOT = "base_model.model."
NINTH = f"{ROOT}roberta.encoder.layer.9.attention.self.query"
FIRST = f"{ROOT}roberta.encoder.layer.0.attention.self.query"
X = np.ones((4, 32), np.float32)


@pytest.mark.parametrize(
    ("fields", "tensors", "message"),
    [
        ({"peft_type": "IA3"}, None, 'peft_type="IA3"; expected LORA'),
        ({"use_dora": True}, None, "use_dora=true; expected plain LoRA. Merge"),
        ({"bias": "all"}, None, 'bias="all"; expected "none"'),
        ({"kasa_config": {"beta": 1}}, None, 'kasa_config={"beta": 1}; expected plain'),
        ({"r": None}, None, "has r=null; expected an integer of at least 1"),
        ({"r": 8}, None, "has factors of rank 4, but .* gives it rank 8"),
        ({"rank_pattern": {"query": 2}}, None, "query has factors of rank 4"),
        ({"rank_pattern": {"(": 2}}, None, r"rank_pattern '\(' is not a regular"),
        (
            {"alpha_pattern": {"query": "x"}},
            None,
            'alpha_pattern={"query": "x"}; expected',
        ),
        ({"init_lora_weights": "pissa"}, None, "that start changes the base"),
        ({}, {f"{ROOT}roberta.pooler.dense.lora_A.weight": X}, "has only lora_A"),
        ({}, {f"{ROOT}roberta.embeddings.word.weight": X}, "adapter has 'roberta.em"),
        (
            {},
            {f"{NINTH}.lora_A.weight": X, f"{NINTH}.lora_B.weight": X.T},
            "has 3 layers",
        ),
        (
            {},
            {f"{ROOT}classifier.out_proj.bias": np.ones(3, "f")},
            "out/bias has shape",
        ),
        ({}, {f"{FIRST}.lora_A.weight": X * np.nan}, "contains NaN or infinity"),
    ],
)
def test_adapters_that_cannot_come_in(fields, tensors, message, tmp_path):
    path = adapter_with(tmp_path, tensors, **fields)
    with pytest.raises(UserError, match=message):
        imports.import_adapter(str(path), str(tmp_path / "run"), str(BASE))


def test_folders_that_are_no_adapter(tmp_path):
    with pytest.raises(UserError, match="has no adapter_config.json"):
        imports.import_adapter(str(BASE), str(tmp_path / "run"))
    path = adapter_with(tmp_path)
    (path / peft.TENSORS).rename(path / "adapter_model.bin")
    with pytest.raises(UserError, match="a pickle; expected"):
        imports.import_adapter(str(path), str(tmp_path / "run"), str(BASE))


def test_a_run_without_data_predicts_and_says_what_else_it_wants(tmp_path):
    back = str(tmp_path / "back")
    imports.import_adapter(str(GOLDEN), back, str(BASE))
    (answer,) = hypelora_jax.load(back).predict(["a b"])
    assert set(answer["probs"]) == {"LABEL_0", "LABEL_1"}
    with pytest.raises(UserError, match="config.data.train is empty"):
        evaluation.evaluate(back)
