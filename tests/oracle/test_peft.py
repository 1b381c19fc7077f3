"""Stock peft and transformers load what we export, and get our logits."""

import contextlib
import io
import json
import re

import numpy as np
import peft
import pytest
import step_zero
import torch
import transformers
from etils import epath
from oracle import folders
from parity import golden

import hypelora_jax
from hypelora_jax import families
from hypelora_jax import model as model_lib
from hypelora_jax.config.settings import from_dict
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.exchange import exports, imports
from hypelora_jax.interop import adapter, huggingface
from hypelora_jax.interop import peft as interop_peft
from hypelora_jax.interop.base import resolve

# peft 0.21 asks transformers 5.23 for a name that goes with its version 6
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
BASE = str(golden.ROOT / "base")
TASKS = ("binary", "three", "regression")
# every mode once, with the three tasks in turn, and all tasks of one
CASES = [(mode, TASKS[i % 3]) for i, mode in enumerate(step_zero.MODES)]
CASES += [("mlp", task) for task in TASKS if ("mlp", task) not in CASES]
AUTO = transformers.AutoModelForSequenceClassification
TEXTS = ("A plain sentence.", "Not the same, but longer than the other one!", "é")


def batch_of(config, rows: int = 8, tokens: int = 14):
    rng = np.random.default_rng(0)
    ids = rng.integers(5, config.vocab, (rows, tokens)).astype(np.int32)
    lengths = rng.integers(4, tokens + 1, rows)
    mask = np.arange(tokens)[None] < lengths[:, None]
    ids = np.where(mask, ids, config.pad_id).astype(np.int32)
    types = np.zeros_like(ids)
    if families.of(config).tokens.segments:
        types = ((np.arange(tokens)[None] >= lengths[:, None] // 2) & mask).astype("i4")
    return {"ids": ids, "mask": mask, "types": types}


def torch_logits(model, batch):
    inputs = {
        "input_ids": torch.from_numpy(batch["ids"]).long(),
        "attention_mask": torch.from_numpy(batch["mask"]).long(),
    }
    if families.FAMILIES[model.config.model_type].tokens.segments:
        inputs["token_type_ids"] = torch.from_numpy(batch["types"]).long()
    with torch.no_grad():
        return model.eval()(**inputs).logits.numpy()


def load_adapter(path, base, outputs):
    model = AUTO.from_pretrained(base, num_labels=outputs, ignore_mismatched_sizes=True)
    return peft.PeftModel.from_pretrained(model, str(path))


def check(run, tmp_path, base, task, tolerance):
    """Adapter and merged folder against the run; how far the adapter is from none."""
    config = evaluation.open_fitted(str(run)).session.base.config
    batch, outputs = batch_of(config), step_zero.TASKS[task].num_outputs
    wanted = step_zero.logits(run, batch)
    (adapter,) = exports.export(str(run), str(tmp_path / "adapter"))
    (merged,) = exports.export(str(run), str(tmp_path / "merged"), "merged")
    loaded = load_adapter(adapter, base, outputs)
    got = torch_logits(loaded, batch)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
    assert np.abs(step_zero.without_adapter(run, batch) - wanted).max() > 20 * tolerance
    whole, info = AUTO.from_pretrained(str(merged), output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys"))
    assert whole.config.num_labels == outputs
    got = torch_logits(whole, batch)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
    return adapter


@pytest.mark.parametrize(("mode", "task"), CASES)
def test_every_mode_on_the_golden_base(mode, task, tmp_path):
    run = step_zero.run_folder(tmp_path / "run", mode, task, model=BASE)
    check(run, tmp_path, BASE, task, 1e-5)


def test_minilm(tmp_path):
    run = step_zero.run_folder(tmp_path / "run", "mlp", "three", model="minilm")
    adapter = check(run, tmp_path, str(resolve("minilm").folder), "three", 1e-4)
    config = json.loads((adapter / "adapter_config.json").read_text())
    name = "sentence-transformers/all-MiniLM-L6-v2"
    assert config["base_model_name_or_path"] == name
    assert f"base_model: {name}" in (adapter / "README.md").read_text()


def test_a_random_roberta_base(tmp_path):
    mesh = {"data": 1, "fsdp": 8}  # not eight copies of 125 million weights
    run = step_zero.run_folder(
        tmp_path / "run", "mlp", model="random:roberta_base", mesh=mesh
    )
    check(run, tmp_path, str(tmp_path / "adapter" / "base"), "binary", 1e-4)


def test_the_golden_adapter_after_its_journey(tmp_path):
    golden_adapter = str(golden.ROOT / "peft_adapter")
    imports.import_adapter(golden_adapter, str(tmp_path / "run"), BASE)
    (out,) = exports.export(str(tmp_path / "run"), str(tmp_path / "out"))
    batch = {n: np.array(x) for n, x in golden.batch().items()}
    one, two = (
        torch_logits(load_adapter(p, BASE, 2), batch) for p in (golden_adapter, out)
    )
    np.testing.assert_array_equal(one, two)
    wanted = golden.load("baseline_lora.npz")["end_logits"]
    np.testing.assert_allclose(two, wanted, rtol=0, atol=1e-4)


ONE, TWO = "layer.1.attention.self.query", "layer.0.attention.self.query"
THEIRS = {  # name -> fields of peft's config
    "one_site": {"rank_pattern": {ONE: 2}, "alpha_pattern": {TWO: 5}},
    "first_key": {
        # in the order of the alphabet, which peft sorts them into when it saves
        "rank_pattern": {"dense": 1, r"layer\.[01]\..*": 3, "query": 6},
        "alpha_pattern": {r"^roberta.*\.1\..*query": 3, "query|output.dense": 12.5},
        "use_rslora": True,
    },
    "exclude_list": {"exclude_modules": ["value", "output.dense"]},
    "exclude_regex": {
        "exclude_modules": r".*layer\.[02]\..*(query|intermediate).*",
        "rank_pattern": {"value": 7},
        "alpha_pattern": {"nothing": 3, "key": 9},
    },
}


def their_model(fields, path):
    """A model of peft with random factors, saved in a folder."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=8,
        target_modules=["query", "key", "value", "dense"],
        init_lora_weights=False,
        **fields,
    )
    base = AUTO.from_pretrained(BASE, num_labels=3, ignore_mismatched_sizes=True)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(path)
    return model


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
@pytest.mark.parametrize("name", THEIRS)
def test_patterns_and_exclusions_of_peft_come_in_and_go_out(name, tmp_path):
    model, back = their_model(THEIRS[name], tmp_path / "theirs"), tmp_path / "back"
    imports.import_adapter(str(tmp_path / "theirs"), str(back), BASE)
    batch = batch_of(huggingface.load_config(BASE))
    wanted = torch_logits(model, batch)
    np.testing.assert_allclose(step_zero.logits(back, batch), wanted, rtol=0, atol=1e-5)
    (out,) = exports.export(str(back), str(tmp_path / "out"))
    loaded = load_adapter(out, BASE, 3)
    got = torch_logits(loaded, batch)
    np.testing.assert_array_equal(got, wanted, "its own factors and scales again")
    assert sites_of(loaded) == sites_of(model)


def sites_of(model):
    """(rank, scale) of each adapted module of a model of peft, by its name."""
    return {
        name.removeprefix("base_model.model."): (x.r["default"], x.scaling["default"])
        for name, x in model.named_modules()
        if isinstance(x, peft.tuners.lora.LoraLayer)
    }


OURS = {  # name -> (fields of ours, the same in peft's config)
    "names": (
        {"rank_pattern": {"value": 2}, "alpha_pattern": {ONE: 3}, "exclude": ("key",)},
        {"exclude_modules": ["key"]},
    ),
    "regexes": (
        {
            "rank_pattern": {r"layer\.[01]\..*": 3, "query": 6},
            "alpha_pattern": {r"(query|key)": 2.5, "layer.1.*": 5},
            "rslora": True,
            "exclude": r"encoder\.layer\.(0.*key|2.*value)",
        },
        {"exclude_modules": r".*\.layer\.(0.*key|2.*value)", "use_rslora": True},
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_a_pattern_means_to_us_what_it_means_to_peft(name, tmp_path):
    fields, more = OURS[name]
    shared = {n: fields[n] for n in ("rank_pattern", "alpha_pattern")}
    names = ["query", "key", "value"]
    theirs = peft.LoraConfig(r=4, lora_alpha=8, target_modules=names, **shared, **more)
    model = peft.get_peft_model(AUTO.from_pretrained(BASE), theirs)
    lora = {"rank": 4, "alpha": 8.0, "targets": names, **fields}
    config = huggingface.load_config(BASE)
    settings = from_dict({"method": "lora", "lora": lora})
    parts = model_lib.build(settings, config, unnamed(2)).parts
    full = families.of(config).names.full
    ours = {
        full[m].format(layer=i): (parts.ranks[m][i], parts.scale[m][i])
        for m, site in parts.lora_sites.items()
        for i in site.layers
    }
    assert ours == sites_of(model)


# Configs of peft for all families; `query` and `q_lin` are each the query of some.
QUERIES = ["query", "q_lin"]
CHOSEN = {
    "default": {},
    "names": {"target_modules": [*QUERIES, "intermediate.dense", "lin1"]},
    "dense": {"target_modules": [*QUERIES, "dense"]},
    "regex": {"target_modules": r".*layer\.1\..*(query|q_lin)"},
    "all-linear": {"target_modules": "all-linear"},
    "no task": {"target_modules": "all-linear", "task_type": None},
    "layers": {"target_modules": QUERIES, "layers_to_transform": [1]},
    "one layer": {"target_modules": QUERIES, "layers_to_transform": 0},
    "pattern": {
        "target_modules": QUERIES,
        "layers_to_transform": [1],
        "layers_pattern": ["h", "layer"],
    },
    "exclude": {
        "target_modules": "all-linear",
        "exclude_modules": ["dense", "pre_classifier"],
    },
    "exclude regex": {"target_modules": QUERIES, "exclude_modules": r".*\.0\..*"},
    "conv": {"target_modules": QUERIES, "fan_in_fan_out": True},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder with a base model of each family."""
    root = tmp_path_factory.mktemp("bases")
    return {name: folders.save(name, root / name) for name in folders.CLASSES}


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
@pytest.mark.parametrize(
    ("family", "name"),
    [
        (family, name)
        for family in folders.CLASSES
        for name in CHOSEN
        # peft has no default for DistilBERT, and cannot adapt and save one layer
        if family != "distilbert" or name not in ("default", "all-linear")
    ],
)
def test_a_config_names_the_modules_that_peft_adapts(family, name, tmp_path, bases):
    """peft's file is complete by our reading of its config, and no part may go."""
    fields = {"task_type": "SEQ_CLS", **CHOSEN[name]}
    config = peft.LoraConfig(r=3, init_lora_weights=False, **fields)
    model = AUTO.from_pretrained(bases[family], num_labels=2)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    known, tensors = interop_peft.read(epath.Path(tmp_path))
    ours = huggingface.load_config(bases[family])
    adapter.from_peft(ours, known, tensors)
    for gone in tensors:
        left = {n: x for n, x in tensors.items() if n != gone}
        if gone.endswith("lora_A.weight"):
            pair = gone.replace("lora_A", "lora_B")
            left = {n: x for n, x in left.items() if n != pair}
        elif gone.endswith("lora_B.weight"):
            continue
        with pytest.raises(UserError, match="has no|has only"):
            adapter.from_peft(ours, known, left)


NEW = ("distilbert", "xlm-roberta")


# XLM-R has RoBERTa's names, which every mode above is about
MODES = [("distilbert", m) for m in ("mlp", "subset", "down_alone", "rslora")]


@pytest.mark.parametrize(("family", "mode"), [*MODES, ("xlm-roberta", "mlp")])
def test_other_families_go_out(family, mode, tmp_path):
    base = folders.save(family, tmp_path / "base")
    task = "three" if mode == "mlp" else "binary"
    run = step_zero.run_folder(tmp_path / "run", mode, task, model=base)
    check(run, tmp_path, base, task, 1e-5)


@pytest.mark.parametrize("family", NEW)
def test_adapters_of_other_families_come_in(family, tmp_path):
    base = folders.save(family, tmp_path / "base")
    names = {"distilbert": ["q_lin", "lin2"], "xlm-roberta": ["query", "dense"]}
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=3,
        lora_alpha=5,
        target_modules=names[family],
        layers_to_transform=[1],
        init_lora_weights=False,
    )
    model = peft.get_peft_model(AUTO.from_pretrained(base, num_labels=2), config)
    model.save_pretrained(tmp_path / "theirs")
    back, theirs = tmp_path / "back", str(tmp_path / "theirs")
    imports.import_adapter(theirs, str(back), base)
    batch = batch_of(huggingface.load_config(base))
    wanted = torch_logits(model, batch)
    np.testing.assert_allclose(step_zero.logits(back, batch), wanted, rtol=0, atol=1e-5)
    (out,) = exports.export(str(back), str(tmp_path / "out"))
    got = torch_logits(load_adapter(out, base, 2), batch)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
    bare = AUTO.from_pretrained(base, num_labels=2)
    assert np.abs(torch_logits(bare, batch) - wanted).max() > 1e-3


def said_of(run, texts, pair):
    return hypelora_jax.load(str(run)).predict(
        [(t, t[::-1])[: 1 + pair] for t in texts]
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_pipeline_gives_the_labels_and_scores_of_predict(task, calibrated, tmp_path):
    if task == "regression":
        calibrated = False
    temperature = 1.8 if calibrated else None
    run = step_zero.run_folder(tmp_path / "run", "mlp", task, temperature)
    (merged,) = exports.export(str(run), str(tmp_path / "merged"), "merged", calibrated)
    pair = step_zero.TASKS[task].pair
    pipe = transformers.pipeline("text-classification", str(merged), device="cpu")
    for text, answer in zip(TEXTS, said_of(run, TEXTS, pair), strict=True):
        given = {"text": text} | ({"text_pair": text[::-1]} if pair else {})
        got = pipe(given, top_k=None, truncation=True)
        if task == "regression":
            (score,) = got
            assert score["score"] == pytest.approx(answer["score"], abs=1e-4)
            continue
        assert got[0]["label"] == answer["label"]
        scores = {x["label"]: x["score"] for x in got}
        assert scores == pytest.approx(answer["probs"], abs=1e-4)


@pytest.mark.parametrize("kind", ["peft", "merged"])
@pytest.mark.parametrize("task", ["three", "regression"])
def test_the_code_of_the_card_runs_and_agrees(kind, task, tmp_path, monkeypatch):
    temperature = 1.8 if task == "three" else None
    run = step_zero.run_folder(tmp_path / "run", "transformer", task, temperature)
    monkeypatch.chdir(tmp_path)
    exports.export(str(run), "out", kind)
    text = (tmp_path / "out" / "README.md").read_text()
    code = re.search(r"```python\n(.+?)```", text, re.S)[1]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    got = [float(x) for x in re.findall(r"-?\d\.\d+(?:e-?\d+)?", said.getvalue())]
    (answer,) = hypelora_jax.load(str(run)).predict([("A text.", "Another one.")])
    wanted = list(answer["probs"].values()) if task == "three" else [answer["score"]]
    assert got == pytest.approx(wanted, abs=2e-4)
