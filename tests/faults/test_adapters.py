"""Faults of kinds A, B, C and M: adapters, JSON of other programs, types of tensors.

Each input is the golden adapter or its base with one change. F-numbers are those of the
log of issue 16.
"""

import json
import logging
import shutil
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
import step_zero
from parity import golden
from safetensors.numpy import load_file, save_file

from hypelora_jax import cli
from hypelora_jax.config import loading
from hypelora_jax.config.json_fields import JsonFields
from hypelora_jax.config.settings import from_dict
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.exchange import exports, imported_run, imports
from hypelora_jax.interop import adapter, huggingface, peft, peft_config
from hypelora_jax.report import model_card

GOLDEN, BASE = golden.ROOT / "peft_adapter", golden.ROOT / "base"
ROOT = "base_model.model."
LAYER = f"{ROOT}roberta.encoder.layer."
QUERY = f"{LAYER}0.attention.self.query"
WORDS = f"{ROOT}roberta.embeddings.word_embeddings"
FACTORS = {
    f: load_file(GOLDEN / peft.TENSORS)[f"{QUERY}.lora_{f}.weight"] for f in "AB"
}


def changed(path, tensors=None, keep=lambda name: True, drop=(), **fields):
    """The golden adapter with more, fewer or other tensors and fields."""
    shutil.copytree(GOLDEN, path)
    values = json.loads((GOLDEN / peft.CONFIG).read_text()) | fields
    kept = {name: x for name, x in values.items() if name not in drop}
    (path / peft.CONFIG).write_text(json.dumps(kept))
    found = load_file(GOLDEN / peft.TENSORS) | (tensors or {})
    found = {n: np.ascontiguousarray(x) for n, x in found.items() if keep(n)}
    save_file(found, path / peft.TENSORS)
    return path


def taken(path) -> adapter.Adapter:
    """The adapter in a folder, as an import takes it."""
    fields, tensors = peft.read(path)
    return adapter.from_peft(huggingface.load_config(BASE), fields, tensors)


def refused(path, message):
    with pytest.raises(UserError, match=message) as caught:
        taken(path)
    assert "\n" not in str(caught.value)


def check_same(one, two):
    """Check that two adapters are equal to the bit."""
    assert one.lora == two.lora and one.sites == two.sites
    jax.tree.map(np.testing.assert_array_equal, one.factors, two.factors)
    jax.tree.map(np.testing.assert_array_equal, one.head, two.head)


# Kind A: parts of an adapter that nobody reads


EMBEDDED = {
    f"{WORDS}.lora_embedding_A": np.ones((4, 367), np.float32),
    f"{WORDS}.lora_embedding_B": np.ones((32, 4), np.float32),
}
EVERYWHERE = {
    "target_modules": ["query", "value", "word_embeddings"],
    "layers_to_transform": None,
    "layers_pattern": None,
}


def test_f1_lora_on_embeddings_is_refused_by_name(tmp_path):
    path = changed(tmp_path / "a", EMBEDDED, **EVERYWHERE)
    refused(path, "word_embeddings.lora_embedding_[AB]'; expected only lora_A and")
    path = changed(tmp_path / "b", **EVERYWHERE)
    refused(path, r"names roberta.embeddings.word_embeddings \(target_modules\)")
    path = changed(tmp_path / "c", **EVERYWHERE | {"target_modules": r".*d_embeddings"})
    refused(path, "names roberta.embeddings.word_embeddings .*Merge that adapter")


TENSORS = [
    f"{QUERY}.lora_diag",
    f"{QUERY}.lora_magnitude_vector",
    f"{QUERY}.lora_magnitude_vector.default.weight",
    f"{QUERY}.lora_B.bias",
    f"{QUERY}.lora_A.default.bias",
    f"{QUERY}.lora_C.weight",
    f"{QUERY}.lora_E",
    f"{QUERY}.lora_ranknum",
    f"{QUERY}.base_layer.weight",
    f"{QUERY}.bias",
    f"{WORDS}.token_adapter.trainable_tokens_delta",
    f"{ROOT}roberta.embeddings.LayerNorm.weight",
    f"{ROOT}classifier.out_proj.scale",
    f"{ROOT}lora_A.weight",
    "prompt_embeddings",
]


@pytest.mark.parametrize("name", TENSORS)
def test_f2_every_tensor_is_used_or_refused_by_name(name, tmp_path):
    path = changed(tmp_path / "a", {name: np.ones(4, np.float32)})
    refused(path, f"the adapter has '{name.removeprefix(ROOT)}'; expected only")


def fields_of(**fields):
    known = json.loads((GOLDEN / peft.CONFIG).read_text())
    return JsonFields("a.json", known | fields)


VARIANTS = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1e-4, "gamma": 1e-3},
    "layer_replication": [[0, 2], [1, 3]],
    "lora_bias": True,
    "megatron_config": {"hidden_size": 32},
    "monteclora_config": {"samples": 8},
    "target_parameters": ["query.weight"],
    "trainable_token_indices": [0, 5],
    "use_bdlora": {"nblocks": 2},
    "use_dora": True,
    "use_qalora": True,
    "velora_config": {"scale": 1},
    "a_field_of_tomorrow": 1,
    "bias": "lora_only",
    "task_type": "TOKEN_CLS",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_f2_every_field_is_known_or_refused_by_name(name):
    value = json.dumps(VARIANTS[name])
    with pytest.raises(UserError) as caught:
        peft_config.read(fields_of(**{name: VARIANTS[name]}))
    assert str(caught.value).startswith(f"a.json has {name}={value}; expected ")


def test_f2_fields_without_an_effect_are_taken():
    wanted = peft_config.read(fields_of())
    harmless = {
        "auto_mapping": {"base_model_class": "RobertaForSequenceClassification"},
        "ensure_weight_tying": True,
        "eva_config": {"rho": 2.0},
        "fan_in_fan_out": True,  # peft turns it off for linear layers
        "inference_mode": False,
        "init_lora_weights": "gaussian",
        "loftq_config": {"loftq_bits": 4},
        "megatron_core": "megatron.core",
        "peft_version": "0.99",
        "qalora_group_size": 32,
        "a_field_of_tomorrow": None,
        "another": [],
        "a_third": False,
    }
    for name, value in harmless.items():
        assert peft_config.read(fields_of(**{name: value})) == wanted, name


def test_f3_layers_and_heads_that_the_config_names_must_be_in_the_file(tmp_path):
    path = changed(tmp_path / "a", keep=lambda name: ".layer.2." not in name)
    query = "roberta.encoder.layer.2.attention.self.query.lora_A.weight"
    refused(path, rf"has no {query}, .*target_modules")
    workdir = str(tmp_path / "run")
    with pytest.raises(UserError, match=f"has no {query}"):
        imports.import_adapter(str(path), workdir, str(BASE))
    path = changed(tmp_path / "b", keep=lambda name: "classifier" not in name)
    refused(path, r"has no classifier.dense.weight, .*modules_to_save")
    gone = f"{ROOT}classifier.out_proj.bias"
    path = changed(tmp_path / "c", keep=lambda name: name != gone)
    refused(path, "has only kernel of the head's out")


UNNAMED = "has factors of roberta.encoder.layer.2.attention.self.query, which .* not"
NAMED = r"has no roberta.encoder.layer.{}.lora_A.weight, .*\(target_modules\)"
KEY = NAMED.format("0.attention.self.key")
DENSE = NAMED.format("0.attention.output.dense")
BARE = {"layers_to_transform": None, "layers_pattern": None}
SITES = [
    (BARE, ""),
    ({"target_modules": None}, ""),  # peft's own choice is query and value
    ({"modules_to_save": None}, ""),  # SEQ_CLS adds classifier and score
    ({"layers_to_transform": 1, "target_modules": r".*\.(query|value)"}, ""),
    ({"layers_to_transform": [0, 1]}, UNNAMED),
    ({"layers_to_transform": 0}, "which .* does not name"),
    ({"layers_pattern": "h"}, "which .* does not name"),
    ({"layers_pattern": ["h", "layer"]}, ""),
    ({"exclude_modules": ["layer.2.attention.self.query"]}, UNNAMED),
    ({"exclude_modules": r".*layer\.2.*query"}, UNNAMED),
    ({"target_modules": r".*layer\.[01]\..*(query|value)|.*2.*value"}, UNNAMED),
    ({"target_modules": []}, "which .* does not name"),
    ({"target_modules": ["value"]}, "which .* does not name"),
    ({"target_modules": ["query", "value", "key"]}, KEY),
    ({"target_modules": r".*(query|value|key)"}, KEY),
    ({"target_modules": "all-linear", **BARE}, KEY),
    ({"target_modules": ["query", "value", "dense"], **BARE}, DENSE),
    (
        {"target_modules": ["query", "value", "out_proj"], "task_type": None}
        | {"modules_to_save": ["dense"], **BARE},
        "has no roberta.encoder.layer.0.attention.output.dense.weight, .*to_save",
    ),
    ({"modules_to_save": ["classifier", "LayerNorm"]}, "embeddings.LayerNorm.weight"),
    ({"modules_to_save": ["word_embeddings"]}, "word_embeddings.weight, .*to_save"),
    ({"rank_pattern": {"layer.2.attention.self.query": 2}}, "of rank 4, but .* rank 2"),
]


@pytest.mark.parametrize(("fields", "message"), SITES)
def test_f3_the_file_has_exactly_the_modules_that_the_config_names(fields, message):
    config = huggingface.load_config(BASE)
    named = peft_config.read(fields_of(**fields))
    _, tensors = peft.read(GOLDEN)
    if not message:
        got = adapter.from_peft(config, named, tensors)
        assert got.sites["q"].layers == got.sites["v"].layers == (0, 1, 2)
        return
    with pytest.raises(UserError, match=message):
        adapter.from_peft(config, named, tensors)


def test_a_head_that_nobody_trained_is_refused(tmp_path):
    bare = tmp_path / "base"
    shutil.copytree(BASE, bare)
    tensors = load_file(bare / "model.safetensors")
    kept = {n: x for n, x in tensors.items() if "classifier.dense" not in n}
    save_file(kept, bare / "model.safetensors")
    fields = {"modules_to_save": ["out_proj"], "task_type": None}
    path = changed(tmp_path / "a", keep=lambda n: "classifier.dense" not in n, **fields)
    back = str(tmp_path / "back")
    with pytest.raises(UserError, match=r"trained head \(classifier.dense.weight\)"):
        imports.import_adapter(str(path), back, str(bare))
    back = imports.import_adapter(str(path), back, str(BASE))
    got = evaluation.open_fitted(str(back)).trainable["head"]["dense"]["kernel"]
    np.testing.assert_array_equal(got, tensors["classifier.dense.weight"].T)


WRAPPED = {
    "compiled": lambda n: n.replace(ROOT, f"_orig_mod.{ROOT}"),
    "compiled before peft": lambda n: n.replace(ROOT, f"{ROOT}_orig_mod."),
    "a compiled layer": lambda n: n.replace("encoder.", "encoder._orig_mod."),
    "data parallel": lambda n: f"module.{n}",
    "both": lambda n: n.replace(ROOT, f"module._orig_mod.{ROOT}module."),
    "twice peft": lambda n: f"{ROOT}{n}",
    "sharded": lambda n: n.replace("layer.", "layer._fsdp_wrapped_module."),
    "checkpointed": lambda n: n.replace("0.", "0._checkpoint_wrapped_module."),
    "no root": lambda n: n.removeprefix(ROOT),
    "an adapter's name": lambda n: (
        n.replace(".weight", ".my-run.weight")
        if "lora_" in n
        else n.replace("classifier.", "classifier.modules_to_save.my-run.")
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_names_of_wrapped_models_are_understood(name, tmp_path):
    path = changed(tmp_path / "a")
    tensors = load_file(path / peft.TENSORS)
    save_file({WRAPPED[name](n): x for n, x in tensors.items()}, path / peft.TENSORS)
    check_same(taken(path), taken(GOLDEN))


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", ROOT])
def test_names_that_become_one_are_refused(wrapper, tmp_path):
    name = f"{QUERY}.lora_A.weight"
    path = changed(tmp_path / "a", {f"{wrapper}{name}": FACTORS["A"]})
    refused(path, f"{name.removeprefix(ROOT)} twice; expected one adapter")
    same = name.removeprefix(f"{ROOT}roberta.").replace("_A", "_{}")
    more = {same.format(f): x for f, x in FACTORS.items()}
    refused(changed(tmp_path / "b", more), "with and without the prefix roberta.")
    more = {"roberta.classifier.dense.bias": np.ones(32, np.float32)}
    refused(changed(tmp_path / "c", more), "has 'roberta.classifier.dense.bias'")


# Kind B: values of a JSON file that are used unchecked


def test_f4_a_missing_lora_alpha_is_8_as_in_peft(tmp_path):
    check_same(taken(changed(tmp_path / "a", drop=["lora_alpha"])), taken(GOLDEN))
    wanted = taken(changed(tmp_path / "b", lora_alpha=16))
    assert wanted.lora.alpha == 16 != taken(GOLDEN).lora.alpha == 8


NUMBER = '{"NAME": NUMBER}, with names or regular expressions for them'
NO_REGEX = "is not a regular expression"
VALUES = [
    ("lora_alpha", None, "has lora_alpha=null; expected a finite number"),
    ("lora_alpha", "16", 'has lora_alpha="16"; expected a finite number'),
    ("lora_alpha", float("nan"), "has lora_alpha=NaN; expected a finite number"),
    ("lora_alpha", float("inf"), "has lora_alpha=Infinity; expected a finite"),
    ("lora_alpha", True, "has lora_alpha=true; expected a finite number"),
    ("lora_alpha", [16], "has lora_alpha=[16]; expected a finite number"),
    ("lora_alpha", 10**400, "; expected a finite number"),
    ("r", 0, "has r=0; expected an integer of at least 1"),
    ("r", 4.0, "has r=4.0; expected an integer of at least 1"),
    ("r", None, "has r=null; expected an integer of at least 1"),
    ("lora_dropout", 1.5, "has lora_dropout=1.5; expected a rate in [0, 1)"),
    ("use_rslora", "yes", 'has use_rslora="yes"; expected true or false'),
    ("alpha_pattern", {"query[": 8}, f"alpha_pattern 'query[' {NO_REGEX}"),
    ("alpha_pattern", {"(?i)query": 8}, f"alpha_pattern '(?i)query' {NO_REGEX}"),
    ("alpha_pattern", [8], f"has alpha_pattern=[8]; expected {NUMBER}"),
    ("alpha_pattern", {"query": None}, f"null}}; expected {NUMBER}"),
    ("rank_pattern", {"query": float("nan")}, f"NaN}}; expected {NUMBER}"),
    ("rank_pattern", "query", f'"query"; expected {NUMBER}'),
    ("target_modules", 3, "has target_modules=3; expected a list of texts"),
    ("target_modules", ["query", 3], "3]; expected a list of texts"),
    ("target_modules", "(query", f"target_modules '(query' {NO_REGEX}"),
    ("exclude_modules", "*key", f"exclude_modules '*key' {NO_REGEX}"),
    ("layers_to_transform", ["0"], "expected a list of integers of at least 0"),
    ("layers_to_transform", [-1], "expected a list of integers of at least 0"),
    ("layers_pattern", "layer[", f"layers_pattern 'layer[' {NO_REGEX}"),
    ("layers_pattern", ["(?P<idx>layer"], NO_REGEX),
    ("modules_to_save", "classifier", "expected a list of texts"),
    ("modules_to_save", ["classifier("], f"modules_to_save 'classifier(' {NO_REGEX}"),
    ("init_lora_weights", 3, "has init_lora_weights=3; expected true or false"),
    ("init_lora_weights", "pissa_niter_4", "that start changes the base's weights"),
    ("peft_type", None, "has peft_type=null; expected LORA"),
    ("peft_type", "LOHA", 'has peft_type="LOHA"; expected LORA'),
    ("base_model_name_or_path", 3, "expected a text"),
    ("revision", ["main"], "expected a text"),
]


@pytest.mark.parametrize(("name", "value", "message"), VALUES)
def test_f4_other_values_are_one_line_with_file_and_field(name, value, message):
    with pytest.raises(UserError) as caught:
        peft_config.read(fields_of(**{name: value}))
    told = str(caught.value)
    assert message in told and told.startswith("a.json") and name in told
    assert "\n" not in told and len(told) < 400


def test_f4_the_command_ends_with_one_line(tmp_path, capsys):
    path = changed(tmp_path / "a", alpha_pattern={"query[": 8})
    flags = [f"--adapter={path}", f"--model={BASE}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["import", *flags]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(
        f"hypelora: error: {path}/adapter_config.json: alpha_pattern 'query['"
    )


CONFIGS = [
    ("num_attention_heads", "4", "an integer of at least 1"),
    ("num_hidden_layers", 20_000, "an integer from 1 to 10000"),
    ("hidden_act", None, ""),
    ("layer_norm_eps", float("nan"), "a finite number of at least 0"),
    ("pad_token_id", 367, "an integer from 0 to 366"),
    ("pad_token_id", -1, "an integer from 0 to 366"),
    ("position_embedding_type", None, ""),
    ("position_embedding_type", "relative_key", '"absolute"'),
    ("is_decoder", 1, "false"),
    ("hidden_act", ["gelu"], '"gelu" or '),
    ("hidden_act", "swish", '"gelu" or '),
    ("model_type", ["roberta"], "one of roberta"),
    ("classifier_dropout", 2, "a rate in "),
    ("id2label", ["spam", "ham"], "an object"),
    ("id2label", {"0": "spam", "2": "ham"}, "with a different name for each output"),
    ("problem_type", 3, "a text"),
    ("num_labels", "2", "an integer of at least 1"),
]


@pytest.mark.parametrize(("name", "value", "expected"), CONFIGS)
def test_f4_config_json_is_read_in_the_same_way(name, value, expected, tmp_path):
    base = base_with(tmp_path / "base", **{name: value})
    if not expected:
        assert huggingface.load_config(base) == huggingface.load_config(BASE)
        return
    with pytest.raises(UserError) as caught:
        imports.import_adapter(str(GOLDEN), str(tmp_path / "run"), str(base))
    told = str(caught.value)
    assert f"{base}/config.json" in told and name in told and expected in told
    assert "\n" not in told


TASK = step_zero.TASKS["binary"]._asdict()
NOTES = [
    ({"config": None}, "has config=null; expected an object"),
    ({"config": {"lora": {"rank": "8"}}}, "config.lora.rank is '8'; expected a whole"),
    ({"config": {"lora": 8}}, "config.lora is 8; expected a section"),
    ({"config": {"lora": {"depth": 8}}}, "config.lora has no field 'depth'"),
    ({"task": 3}, "has task=3; expected an object"),
    ({"task": {"name": "toy"}}, "task has no kind; expected one of classification"),
    ({"task": TASK | {"metrics": ["bleu"]}}, 'metrics=["bleu"]; expected a list with'),
    ({"task": TASK | {"kind": []}}, "has kind=[]; expected one of classification"),
    ({"calibrator": [1]}, "has calibrator=[1]; expected an object"),
    ({"calibrator": {"kind": "magic"}}, "the calibrator has kind 'magic'"),
]


@pytest.mark.parametrize(("fields", "message"), NOTES)
def test_f4_our_own_record_is_read_in_the_same_way(fields, message, tmp_path):
    record = {
        "config": {"method": "lora"},
        "task": TASK,
        "calibrator": None,
    }
    path = tmp_path / "hypelora.json"
    path.write_text(json.dumps(record))
    found = imported_run.note_of(tmp_path)
    assert found.task == step_zero.TASKS["binary"] and found.calibrator is None
    path.write_text(json.dumps(record | fields))
    with pytest.raises(UserError) as caught:
        imported_run.note_of(tmp_path)
    told = str(caught.value)
    assert told.startswith(str(path)) and message in told and "\n" not in told


# Kind C: tensors of other types


def as_float64(name, x):
    return x.astype(np.float64)


def as_float64_head(name, x):
    return x if "lora" in name else x.astype(np.float64)


@pytest.mark.parametrize("cast", [as_float64, as_float64_head])
def test_f5_float64_becomes_float32_with_a_line(cast, tmp_path, caplog):
    whole = load_file(GOLDEN / peft.TENSORS)
    path = changed(tmp_path / "a", {n: cast(n, x) for n, x in whole.items()})
    with caplog.at_level(logging.INFO):
        check_same(taken(path), taken(GOLDEN))
    told = [x for x in caplog.messages if "tensors of float64 become float32" in x]
    assert len(told) == 1


def test_f5_a_base_of_float64_is_the_base(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    wanted = load_file(base / "model.safetensors")
    wide = {n: x.astype(np.float64) for n, x in wanted.items()}
    save_file(wide, base / "model.safetensors")
    got = huggingface.read_tensors(base)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    huge = wide | {"classifier.dense.bias": np.full(32, 1e300)}
    save_file(huge, base / "model.safetensors")
    config = huggingface.load_config(base)
    with pytest.raises(UserError, match="'classifier.dense.bias' contains NaN or inf"):
        huggingface.from_hf(config, huggingface.read_tensors(base), 2)


TYPES = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int64": np.int64,
    "bool": np.bool_,
    "complex64": np.complex64,
}


@pytest.mark.parametrize("name", TYPES)
def test_f5_other_types_are_refused_by_name(name, tmp_path):
    head = f"{ROOT}classifier.out_proj.weight"
    for tensor in (f"{QUERY}.lora_A.weight", head):
        whole = load_file(GOLDEN / peft.TENSORS)[tensor]
        path = changed(tmp_path / tensor, {tensor: np.ones(whole.shape, TYPES[name])})
        refused(path, f"'{tensor}' has dtype {name}; expected float32, float16")


def typed(path, name, kind, bits):
    """A file with one tensor of a type that safetensors knows by name."""
    data = bytes(32 * bits // 8)
    head = {name: {"dtype": kind, "shape": [32], "data_offsets": [0, len(data)]}}
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_f5_types_of_eight_bits_and_fewer_are_named(tmp_path):
    file, name = tmp_path / "model.safetensors", "classifier.dense.bias"
    for kind, told in (("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")):
        typed(file, name, kind, 8)
        got = huggingface.read_tensors(tmp_path)[name]
        assert (got.dtype.name, got.shape) == (told, (32,))
        assert got.dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
    typed(file, name, "F4", 4)
    with pytest.raises(UserError, match=f"tensor '{name}' has type F4; expected one"):
        huggingface.read_tensors(tmp_path)
    typed(file, name, "Q9", 8)
    with pytest.raises(UserError, match="cannot be read as safetensors .*Q9"):
        huggingface.read_tensors(tmp_path)


# Kind M: flags, what a base says of its outputs, and model cards


def test_f28_no_flags_with_a_value_are_one_line():
    said = loading.load_settings("common", ["--noconfig.optim.decay_all"])
    assert said.optim.decay_all is False
    for value in ("true", "", "1"):
        with pytest.raises(
            UserError, match="^--noconfig.lora.rslora is .*no value"
        ) as e:
            loading.load_settings("common", [f"--noconfig.lora.rslora={value}"])
        assert "\n" not in str(e.value)


def base_with(path, **fields):
    shutil.copytree(BASE, path)
    known = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(known | fields))
    return path


NAMES = {"id2label": {"0": "spam", "1": "ham"}}
MULTI = {"problem_type": "multi_label_classification"}
REFUSED = "multi_label_classification' and 2 outputs; expected single_label"


@pytest.mark.parametrize("fields", [MULTI, MULTI | NAMES, MULTI | {"num_labels": 6}])
def test_f30_a_base_with_several_labels_a_text_is_refused(fields, tmp_path):
    base = base_with(tmp_path / "base", **fields)
    with pytest.raises(UserError, match=REFUSED):
        imports.import_adapter(str(GOLDEN), str(tmp_path / "run"), str(base))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        (NAMES, ("spam", "ham")),
        (NAMES | {"problem_type": "single_label_classification"}, ("spam", "ham")),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, ("LABEL_0", "LABEL_1")),
        ({"problem_type": None}, ("LABEL_0", "LABEL_1")),
    ],
)
def test_f30_the_names_of_the_base_are_the_labels(fields, labels, tmp_path):
    base = base_with(tmp_path / "base", **fields)
    imports.import_adapter(str(GOLDEN), str(tmp_path / "run"), str(base))
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["task"]["labels"] == list(labels)


def test_f30_data_has_the_order_of_the_base(tmp_path):
    """Sorted, the classes of the data would be the wrong way round."""
    base = base_with(tmp_path / "base", **NAMES)
    rows = [f"text {i},{'spam' if i % 3 else 'ham'}" for i in range(300)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    data = {"source": "files", "train": str(tmp_path / "t.csv"), "max_length": 16}
    config = from_dict({"data": data})
    run = imports.import_adapter(str(GOLDEN), str(tmp_path / "run"), str(base), config)
    record = json.loads((run / "config.json").read_text())
    assert record["task"]["labels"] == ["spam", "ham"]
    assert record["config"]["data"]["classes"] == ["spam", "ham"]


def test_f31_a_path_is_never_the_name_of_a_base_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = step_zero.run_folder(tmp_path / "run")
    exports.export(str(run), "ex")
    card = (tmp_path / "ex" / "README.md").read_text()
    front = card.split("---")[1]
    assert "base_model" not in front and "library_name: peft" in front


@pytest.mark.parametrize("on_hub", [True, False])
def test_f31_names_on_the_hub_are_in_the_front_of_the_card(on_hub):
    values = dict.fromkeys(model_card.Card._fields, "")
    values |= {"kind": "peft", "base": "org/name", "labels": (), "metrics": {}}
    values |= {"max_length": 8, "on_hub": on_hub, "name": "x", "revision": "a1"}
    text = model_card.markdown(model_card.Card(**values))
    assert ("base_model: org/name" in text.split("---")[1]) is on_hub
