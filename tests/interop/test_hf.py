"""Import and export: inverse of each other, strict, one line for each fault."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hypelora_jax.interop import hf
from hypelora_jax.models.encoder import encoder
from hypelora_jax.models.heads import head
from hypelora_jax.models.presets import preset, site_dims
from hypelora_jax.trees import flatten
from hypelora_jax.types import UserError

ROBERTA = replace(preset("tiny"), vocab=40, max_positions=20)
BERT = replace(ROBERTA, family="bert", pad_id=0, type_vocab=2, norm_eps=1e-12)
CONFIGS = {"roberta": ROBERTA, "bert": BERT}


def make_params(config, outputs=2):
    """Random values everywhere (no zeros or ones), exact in bfloat16 and float16."""
    shapes = {
        "backbone": jax.eval_shape(encoder(config).init, jax.random.key(0)),
        "head": jax.eval_shape(head(config, outputs).init, jax.random.key(0)),
    }
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.integers(-127, 128, x.shape).astype(np.float32) / 64, shapes
    )


def same(got, wanted):
    got, wanted = flatten(got), flatten(wanted)
    assert list(got) == list(wanted)
    for path, x in wanted.items():
        np.testing.assert_array_equal(got[path], x, err_msg=path, strict=True)


@pytest.fixture(params=["roberta", "bert"])
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def tensors(config):
    return hf.to_hf(config, make_params(config))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", [None, 10_000])
def test_export_then_import_is_bit_equal(config, dtype, shard, tmp_path):
    params = make_params(config)
    hf.save_folder(tmp_path, config, params, dtype, shard)
    files = [p.name for p in tmp_path.glob("*.safetensors")]
    assert (files == ["model.safetensors"]) == (shard is None)
    assert not list(tmp_path.glob("*.part"))
    assert hf.load_config(tmp_path) == config
    loaded, report = hf.from_hf(config, hf.read_tensors(tmp_path), 2)
    assert report == hf.Report((), ())
    same(loaded, params)


def test_import_then_export_is_bit_equal(config, tensors, tmp_path):
    params, _ = hf.from_hf(config, tensors, 2)
    hf.save_folder(tmp_path, config, params)
    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(again[name], x, strict=True)


def test_a_later_single_file_replaces_earlier_shards_and_back(tmp_path):
    one, two = make_params(ROBERTA), make_params(ROBERTA, 3)
    hf.save_folder(tmp_path, ROBERTA, one, max_shard_bytes=10_000)
    hf.save_folder(tmp_path, ROBERTA, two)
    assert len(hf.read_tensors(tmp_path)["classifier.out_proj.bias"]) == 3
    hf.save_folder(tmp_path, ROBERTA, one, max_shard_bytes=10_000)
    assert len(hf.read_tensors(tmp_path)["classifier.out_proj.bias"]) == 2


def test_names_of_modules_are_names_of_kernels(config, tensors):
    for module, pattern in hf.HF_MODULES[config.family].items():
        name = hf.PREFIX[config.family] + pattern.format(layer=1) + ".weight"
        assert tensors[name].shape == site_dims(config)[module][::-1]


def test_names_without_prefix_and_with_gamma_and_beta(config, tensors):
    old = {
        name.removeprefix(hf.PREFIX[config.family])
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in tensors.items()
    }
    assert not old.keys() & {n for n in tensors if "classifier" not in n}
    same(hf.from_hf(config, old, 2)[0], make_params(config))


def test_what_may_be_extra_is_left_out_by_name(config, tensors):
    extra = {"roberta.embeddings.position_ids", "lm_head.dense.weight"}
    extra |= {"roberta.pooler.dense.weight", "pooler.dense.bias"}
    if config.family == "bert":
        extra = {"embeddings.position_ids", "cls.predictions.bias"}
    more = tensors | {name: np.zeros(3, np.uint8) for name in extra}
    params, report = hf.from_hf(config, more, 2)
    assert set(report.ignored) == extra
    same(params, make_params(config))


def test_an_absent_head_is_fresh(config, tensors):
    names = [n for n in tensors if "classifier" not in n and "pooler" not in n]
    params, report = hf.from_hf(config, {n: tensors[n] for n in names}, 2)
    assert report.fresh == ("head/dense", "head/out")
    same(params, {"backbone": make_params(config)["backbone"]})


def test_a_head_with_other_labels_keeps_its_dense(config, tensors):
    params, report = hf.from_hf(config, tensors, 3)
    assert report.fresh == ("head/out",)
    wanted = make_params(config)["head"]["dense"]
    same(params["head"], {"dense": wanted})


def test_labels_and_regression_are_written(tmp_path):
    hf.save_folder(tmp_path, ROBERTA, make_params(ROBERTA), labels=["no", "yes"])
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["id2label"] == {"0": "no", "1": "yes"}
    assert fields["architectures"] == ["RobertaForSequenceClassification"]
    hf.save_folder(tmp_path, ROBERTA, make_params(ROBERTA, 1))
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["problem_type"] == "regression"
    with pytest.raises(UserError, match="1 labels for a head of 2 outputs"):
        hf.save_folder(tmp_path, ROBERTA, make_params(ROBERTA), labels=["no"])


def first(tensors, part):
    return next(name for name in tensors if part in name)


def fault(config, tensors, message):
    with pytest.raises(UserError, match=message) as e:
        hf.from_hf(config, tensors, 2)
    assert "\n" not in str(e.value)


def test_an_unknown_tensor(config, tensors):
    tensors["encoder.layer.0.attention.rotary"] = np.zeros(1, np.float32)
    fault(config, tensors, "unknown tensor 'encoder.layer.0.attention.rotary'")


def test_a_layer_too_many(config, tensors):
    name = first(tensors, "layer.1.intermediate.dense.bias")
    tensors[name.replace("layer.1", "layer.2")] = tensors[name]
    fault(config, tensors, "unknown tensor .*layer.2.intermediate")


@pytest.mark.parametrize("part", ["layer.1.output.dense.bias", "word_embeddings"])
def test_a_missing_tensor(config, tensors, part):
    name = first(tensors, part)
    del tensors[name]
    fault(config, tensors, f"tensor '{name}' is missing")


def test_half_a_head_is_missing_a_tensor(config, tensors):
    name = next(n for n in tensors if n.startswith("classifier") and "weight" in n)
    del tensors[name]
    fault(config, tensors, f"tensor '{name}' is missing")


def test_roberta_s_output_without_its_dense_is_a_damaged_file():
    tensors = hf.to_hf(ROBERTA, make_params(ROBERTA))
    kept = {n: x for n, x in tensors.items() if "classifier.dense" not in n}
    fault(ROBERTA, kept, "tensor 'classifier.dense.weight' is missing")


def test_a_tensor_twice_with_and_without_prefix(config, tensors):
    name = first(tensors, "query.weight")
    short = name.removeprefix(hf.PREFIX[config.family])
    tensors[short] = tensors[name]
    fault(config, tensors, f"'{name}' and '{short}' are the same parameter")


def test_a_norm_twice_as_gamma_and_weight(config, tensors):
    name = first(tensors, "LayerNorm.weight")
    other = name.replace("weight", "gamma")
    tensors[other] = tensors[name]
    fault(config, tensors, f"'{name}' and '{other}' are the same parameter")


@pytest.mark.parametrize("part", ["query.weight", "word_embeddings", "dense.bias"])
def test_a_mis_shaped_tensor(config, tensors, part):
    name = first(tensors, part)
    tensors[name] = tensors[name][:-1]
    fault(config, tensors, rf"tensor '{name}' has shape \(.*\); wanted \(")


def test_an_output_of_another_width_is_mis_shaped(config, tensors):
    names = {"bert": "classifier.weight", "roberta": "classifier.out_proj.weight"}
    name = names[config.family]
    tensors[name] = tensors[name][:, :-1]
    fault(config, tensors, f"tensor '{name}' has shape")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity(config, tensors, value):
    name = first(tensors, "key.weight")
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = value
    fault(config, tensors, f"tensor '{name}' holds NaN or infinity")


def test_an_integer_tensor(config, tensors):
    name = first(tensors, "key.weight")
    tensors[name] = tensors[name].astype(np.int32)
    fault(config, tensors, f"tensor '{name}' holds int32; wanted float32")


def no_files(folder, message):
    with pytest.raises(UserError, match=message) as e:
        hf.read_tensors(folder)
    assert "\n" not in str(e.value)


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    no_files(tmp_path, "pytorch_model.bin, a pickle.*save_pretrained")


def test_no_weights_at_all(tmp_path):
    no_files(tmp_path, "has no model.safetensors")


def test_a_cut_file(tmp_path):
    save_file({"x": np.zeros(100, np.float32)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-10])
    no_files(tmp_path, "model.safetensors cannot be read as safetensors")


def sharded(folder, change):
    hf.save_folder(folder, ROBERTA, make_params(ROBERTA), max_shard_bytes=20_000)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "trick",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", 3]
    + ["..\\x.safetensors", ".safetensors", "x.safetensors\n"],
)
def test_an_index_that_points_elsewhere(tmp_path, trick):
    sharded(tmp_path, lambda where: where.update({next(iter(where)): trick}))
    no_files(tmp_path, "names the shard .*; wanted a plain file name")


def test_an_index_and_shards_that_disagree(tmp_path):
    name = "classifier.dense.bias"
    sharded(tmp_path / "a", lambda where: where.pop(name))
    no_files(tmp_path / "a", f"holds '{name}', which .* places in None")
    other = "roberta.embeddings.word_embeddings.weight"
    sharded(tmp_path / "b", lambda where: where.update(extra=where[other]))
    no_files(tmp_path / "b", "lacks 'extra'")


def test_a_missing_shard_and_an_index_without_a_map(tmp_path):
    sharded(tmp_path / "a", lambda where: None)
    next((tmp_path / "a").glob("model-00001-*")).unlink()
    no_files(tmp_path / "a", "model-00001-of-.*cannot be read")
    sharded(tmp_path / "b", lambda where: where.clear())
    no_files(tmp_path / "b", "has no weight_map")


def no_config(folder, message):
    with pytest.raises(UserError, match=message) as e:
        hf.load_config(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"model_type": "bert",\n\n', "config.json cannot be read"),
        ("[1]", "config.json holds no JSON object"),
        (b"\xff\xfe", "config.json cannot be read"),
        ('{"hidden_size": 8}', "model_type=None; wanted one of roberta, bert"),
        ('{"model_type": "gpt2"}', "model_type='gpt2'; wanted one of roberta, bert"),
    ],
)
def test_a_malformed_config(tmp_path, text, message):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "config.json").write_bytes(data)
    no_config(tmp_path, message)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("hidden_size", None, "has no hidden_size"),
        ("num_hidden_layers", None, "has no num_hidden_layers"),
        ("vocab_size", "40", "vocab_size='40'; wanted an integer"),
        ("vocab_size", -1, "vocab_size=-1; wanted an integer of at least 1"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps=nan; wanted a number"),
        ("num_attention_heads", True, "num_attention_heads=True; wanted an integer"),
        ("num_attention_heads", 5, "config.json: 5 heads do not divide"),
        ("hidden_act", "swish", "config.json: activation is 'swish'"),
        ("hidden_dropout_prob", 1.0, "hidden_dropout_prob=1.0; wanted a rate"),
        ("position_embedding_type", "relative_key", "wanted 'absolute'"),
        ("is_decoder", True, "is_decoder=True; wanted False"),
    ],
)
def test_a_config_with_a_bad_field(tmp_path, field, value, message):
    hf.save_folder(tmp_path, ROBERTA, make_params(ROBERTA))
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {field: value}))
    no_config(tmp_path, message)


def test_a_missing_config(tmp_path):
    no_config(tmp_path, "config.json does not exist; wanted a folder")


def test_saving_under_a_file_and_in_an_unknown_dtype(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/x .*choose another"):
        hf.save_folder(tmp_path / "file" / "x", ROBERTA, make_params(ROBERTA))
    with pytest.raises(UserError, match="dtype is 'int8'; wanted one of float32"):
        hf.save_folder(tmp_path, ROBERTA, make_params(ROBERTA), "int8")
