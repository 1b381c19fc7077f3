"""Folders that cannot be read: one line for each fault."""

import json

import numpy as np
import pytest
from interop.huggingface_params import ROBERTA, make_params
from safetensors.numpy import save_file

from hypelora_jax.errors import UserError
from hypelora_jax.interop import huggingface


def no_files(folder, message):
    with pytest.raises(UserError, match=message) as e:
        huggingface.read_tensors(folder)
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
    huggingface.save_model(
        folder, ROBERTA, make_params(ROBERTA), max_shard_bytes=20_000
    )
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
    no_files(tmp_path, "names the shard .*; expected a plain file name")


def test_an_index_and_shards_that_disagree(tmp_path):
    name = "classifier.dense.bias"
    sharded(tmp_path / "a", lambda where: where.pop(name))
    no_files(tmp_path / "a", f"has '{name}', which .* places in None")
    other = "roberta.embeddings.word_embeddings.weight"
    sharded(tmp_path / "b", lambda where: where.update(extra=where[other]))
    no_files(tmp_path / "b", "does not have 'extra'")


def test_a_missing_shard_and_an_index_without_a_map(tmp_path):
    sharded(tmp_path / "a", lambda where: None)
    next((tmp_path / "a").glob("model-00001-*")).unlink()
    no_files(tmp_path / "a", "model-00001-of-.*cannot be read")
    sharded(tmp_path / "b", lambda where: where.clear())
    no_files(tmp_path / "b", "has weight_map={}; expected the shard")


def no_config(folder, message):
    with pytest.raises(UserError, match=message) as e:
        huggingface.load_config(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"model_type": "bert",\n\n', "config.json cannot be read"),
        ("[1]", "config.json is not a JSON object"),
        (b"\xff\xfe", "config.json cannot be read"),
        ('{"hidden_size": 8}', "has no model_type; expected one of roberta, bert"),
        ('{"model_type": "gpt2"}', 'model_type="gpt2"; expected one of roberta, bert'),
    ],
)
def test_a_malformed_config(tmp_path, text, message):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "config.json").write_bytes(data)
    no_config(tmp_path, message)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("hidden_size", None, "has hidden_size=null; expected an integer"),
        ("num_hidden_layers", None, "has num_hidden_layers=null; expected an integer"),
        ("vocab_size", "40", 'vocab_size="40"; expected an integer'),
        ("vocab_size", -1, "vocab_size=-1; expected an integer of at least 1"),
        (
            "layer_norm_eps",
            float("nan"),
            "layer_norm_eps=NaN; expected a finite number",
        ),
        (
            "num_attention_heads",
            True,
            "num_attention_heads=true; expected an integer",
        ),
        ("num_attention_heads", 5, "config.json: 5 heads do not divide"),
        ("hidden_act", "swish", 'hidden_act="swish"; expected "gelu" or'),
        ("hidden_dropout_prob", 1.0, "hidden_dropout_prob=1.0; expected a rate"),
        ("position_embedding_type", "relative_key", 'expected "absolute"'),
        ("is_decoder", True, "is_decoder=true; expected false"),
    ],
)
def test_a_config_with_a_bad_field(tmp_path, field, value, message):
    huggingface.save_model(tmp_path, ROBERTA, make_params(ROBERTA))
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {field: value}))
    no_config(tmp_path, message)


def test_a_missing_config(tmp_path):
    no_config(tmp_path, "config.json does not exist; expected a folder")


def test_saving_under_a_file_and_in_an_unknown_dtype(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/x .*Choose another"):
        huggingface.save_model(tmp_path / "file" / "x", ROBERTA, make_params(ROBERTA))
    with pytest.raises(UserError, match="dtype is 'int8'; expected one of float32"):
        huggingface.save_model(tmp_path, ROBERTA, make_params(ROBERTA), "int8")
