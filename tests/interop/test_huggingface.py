"""Import and export: inverse of each other, strict, one line for each fault."""

import json

import numpy as np
import pytest
from interop.huggingface_params import CONFIGS, ROBERTA, make_params
from safetensors.numpy import load_file

from hypelora_jax import families
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import site_dims
from hypelora_jax.interop import huggingface
from hypelora_jax.trees import flatten


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
    return huggingface.to_hf(config, make_params(config))


every_family = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def test_every_family_is_tried():
    assert CONFIGS.keys() == families.FAMILIES.keys()
    for name, family in families.FAMILIES.items():
        assert name == family.name == CONFIGS[name].family


@every_family
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", [None, 10_000])
def test_export_then_import_is_bit_equal(config, dtype, shard, tmp_path):
    params = make_params(config)
    huggingface.save_model(tmp_path, config, params, dtype, shard)
    files = [p.name for p in tmp_path.glob("*.safetensors")]
    assert (files == ["model.safetensors"]) == (shard is None)
    assert not list(tmp_path.glob("*.part"))
    assert huggingface.load_config(tmp_path) == config
    loaded, report = huggingface.from_hf(config, huggingface.read_tensors(tmp_path), 2)
    assert report == huggingface.Report((), ())
    same(loaded, params)


@every_family
def test_import_then_export_is_bit_equal(config, tensors, tmp_path):
    params, _ = huggingface.from_hf(config, tensors, 2)
    huggingface.save_model(tmp_path, config, params)
    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(again[name], x, strict=True)


def test_a_later_single_file_replaces_earlier_shards_and_back(tmp_path):
    one, two = make_params(ROBERTA), make_params(ROBERTA, 3)
    huggingface.save_model(tmp_path, ROBERTA, one, max_shard_bytes=10_000)
    huggingface.save_model(tmp_path, ROBERTA, two)
    assert len(huggingface.read_tensors(tmp_path)["classifier.out_proj.bias"]) == 3
    huggingface.save_model(tmp_path, ROBERTA, one, max_shard_bytes=10_000)
    assert len(huggingface.read_tensors(tmp_path)["classifier.out_proj.bias"]) == 2


@every_family
def test_names_of_modules_are_names_of_kernels(config, tensors):
    for module, pattern in families.of(config).names.modules.items():
        name = families.of(config).names.prefix + pattern.format(layer=1) + ".weight"
        assert tensors[name].shape == site_dims(config)[module][::-1]


def test_names_without_prefix_and_with_gamma_and_beta(config, tensors):
    old = {
        name.removeprefix(families.of(config).names.prefix)
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): x
        for name, x in tensors.items()
    }
    assert not old.keys() & {n for n in tensors if "classifier" not in n}
    same(huggingface.from_hf(config, old, 2)[0], make_params(config))


def test_what_may_be_extra_is_left_out_by_name(config, tensors):
    extra = {"roberta.embeddings.position_ids", "lm_head.dense.weight"}
    extra |= {"roberta.pooler.dense.weight", "pooler.dense.bias"}
    if config.family == "bert":
        extra = {"embeddings.position_ids", "cls.predictions.bias"}
    more = tensors | {name: np.zeros(3, np.uint8) for name in extra}
    params, report = huggingface.from_hf(config, more, 2)
    assert set(report.ignored) == extra
    same(params, make_params(config))


@every_family
def test_an_absent_head_is_fresh(config, tensors):
    names = [n for n in tensors if "classifier" not in n and "pooler" not in n]
    params, report = huggingface.from_hf(config, {n: tensors[n] for n in names}, 2)
    assert report.fresh == ("head/dense", "head/out")
    same(params, {"backbone": make_params(config)["backbone"]})


@every_family
def test_a_head_may_be_ignored(config, tensors):
    params, report = huggingface.from_hf(config, tensors, None)
    assert report.fresh == ()
    head = {n for n in tensors if "classifier" in n or "pooler" in n}
    assert len(head) == 4 and set(report.ignored) == head
    same(params, {"backbone": make_params(config)["backbone"]})


@every_family
def test_a_head_with_other_labels_keeps_its_dense(config, tensors):
    params, report = huggingface.from_hf(config, tensors, 3)
    assert report.fresh == ("head/out",)
    wanted = make_params(config)["head"]["dense"]
    same(params["head"], {"dense": wanted})


def test_labels_and_regression_are_written(tmp_path):
    huggingface.save_model(
        tmp_path, ROBERTA, make_params(ROBERTA), labels=["no", "yes"]
    )
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["id2label"] == {"0": "no", "1": "yes"}
    assert fields["architectures"] == ["RobertaForSequenceClassification"]
    huggingface.save_model(tmp_path, ROBERTA, make_params(ROBERTA, 1))
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["problem_type"] == "regression"
    with pytest.raises(UserError, match="1 labels for a head of 2 outputs"):
        huggingface.save_model(tmp_path, ROBERTA, make_params(ROBERTA), labels=["no"])


def first(tensors, part):
    return next(name for name in tensors if part in name)


def fault(config, tensors, message):
    with pytest.raises(UserError, match=message) as e:
        huggingface.from_hf(config, tensors, 2)
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
    tensors = huggingface.to_hf(ROBERTA, make_params(ROBERTA))
    kept = {n: x for n, x in tensors.items() if "classifier.dense" not in n}
    fault(ROBERTA, kept, "tensor 'classifier.dense.weight' is missing")


def test_a_tensor_twice_with_and_without_prefix(config, tensors):
    name = first(tensors, "query.weight")
    short = name.removeprefix(families.of(config).names.prefix)
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
    fault(config, tensors, rf"tensor '{name}' has shape \(.*\); expected \(")


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
    fault(config, tensors, f"tensor '{name}' contains NaN or infinity")


def test_an_integer_tensor(config, tensors):
    name = first(tensors, "key.weight")
    tensors[name] = tensors[name].astype(np.int32)
    fault(config, tensors, f"tensor '{name}' has dtype int32; expected float32")
