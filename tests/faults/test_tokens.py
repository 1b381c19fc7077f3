"""Kinds D and E: files next to a vocabulary, and ids that the model has no row for.

F6 and F7 are inputs whose ids transformers 5.23 gave; tests/oracle/test_tokens.py asks
it itself about many more folders.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import hub
import jax
import numpy as np
import pytest
import tiny

import hypelora_jax
from hypelora_jax import cli, families
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tokens import tokenizer
from hypelora_jax.errors import UserError
from hypelora_jax.interop import huggingface
from hypelora_jax.interop.base import read_tokenizer, resolve

GOLDEN = Path(__file__).parents[1] / "golden" / "base"  # a RoBERTa of 367 tokens
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] hello Hello world World h ##i".split()
BRAND = {"content": "<brand>", "lstrip": False, "rstrip": False, "single_word": False}
BRAND |= {"normalized": False, "special": False}
PLACES = {
    "added_tokens.json": lambda n: {"<brand>": n},
    "tokenizer_config.json": lambda n: {"added_tokens_decoder": {str(n): BRAND}},
    "special_tokens_map.json": lambda n: {"additional_special_tokens": ["<brand>"]},
}


def ids(own, *texts):
    rows = np.arange(len(texts))
    return [
        x.tolist() for x in own.encode(Table(rows, list(texts), None, rows), 32).ids
    ]


def roberta(folder, form="vocab.json", **files):
    """The golden model's vocabulary in one form, and files next to it."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / name, folder / name)
    if form == "tokenizer.json":
        (folder / form).write_text(own(folder, "roberta", {}).to_json())
        (folder / "vocab.json").unlink()
    return own(folder, "roberta", files)


def bert(folder, **files):
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return own(folder, "bert", files)


def own(folder, family, files):
    for name, fields in files.items():
        (folder / f"{name}.json").write_text(json.dumps(fields))
    return tokenizer(folder, families.FAMILIES[family].tokens, 0)


def copy_of_golden(folder, **fields):
    """The golden model with vocab.json, and with other fields in its config.json."""
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("tokenizer.json"))
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_f6_added_tokens_of_roberta(form, place, tmp_path):
    files = {place.removesuffix(".json"): PLACES[place](367)}
    made = roberta(tmp_path, form, **files)
    want = [0, 44, 73, 80, 80, 83, 225, 367, 225, 59, 308, 80, 72, 2]
    assert ids(made, "Hello <brand> World") == [want]
    assert (made.vocab_size, made.last) == (368, "<brand>")


@pytest.mark.parametrize("place", PLACES)
def test_f6_added_tokens_of_bert(place, tmp_path):
    cased = {"do_lower_case": False}
    files = {place.removesuffix(".json"): PLACES[place](len(WORDS))}
    files["tokenizer_config"] = files.get("tokenizer_config", {}) | cased
    made = bert(tmp_path, **files)
    assert ids(made, "Hello <brand> World") == [[2, 6, len(WORDS), 8, 3]]
    assert ids(made, "Hello<brand>World") == [[2, 6, len(WORDS), 8, 3]]


def test_f6_an_added_token_keeps_the_id_of_its_file(tmp_path):
    with pytest.raises(UserError, match="the id 370; expected 367, the next one after"):
        roberta(tmp_path, added_tokens={"<brand>": 370})
    vocab = {"a": 0, "<s>": 1, "</s>": 2, "b": 4}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(
        UserError, match="'<x>' gets id 4, that of 'b'; expected ids without"
    ):
        own(tmp_path, "roberta", {"added_tokens": {"<x>": 4}})


@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_f7_add_prefix_space(form, tmp_path):
    made = roberta(tmp_path, form, tokenizer_config={"add_prefix_space": True})
    assert ids(made, "Hello") == [[0, 225, 44, 73, 80, 80, 83, 2]]
    made = roberta(tmp_path, form, tokenizer_config={"add_prefix_space": False})
    assert ids(made, "Hello") == [[0, 44, 73, 80, 80, 83, 2]]


def test_settings_of_tokenizer_config_json(tmp_path):
    # ids of the words in WORDS; those of transformers are in the oracle test
    assert ids(bert(tmp_path), "Hello Hi") == [[2, 5, 9, 10, 3]]
    cased = bert(tmp_path, tokenizer_config={"do_lower_case": False})
    assert ids(cased, "Hello hi") == [[2, 6, 9, 10, 3]]
    fields = {"cls_token": "hello", "sep_token": "world", "unk_token": "[MASK]"}
    named = bert(tmp_path, tokenizer_config=fields)
    assert ids(named, "Hi what") == [[5, 9, 10, 4, 7]]
    fields = {"truncation_side": "left"}
    left = bert(tmp_path, tokenizer_config=fields)
    rows = np.arange(1)
    cut = left.encode(Table(rows, ["hello hello world"], None, rows), 4)
    assert cut.ids[0].tolist() == [2, 5, 7, 3] and cut.truncated == 1


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"do_lower_case": "no"}, "do_lower_case='no'; expected true or false"),
        ({"truncation_side": "top"}, "truncation_side='top'; expected left or right"),
        ({"mask_token": "\ud83d"}, "mask_token='\\ud83d'; expected a token"),
        ({"mask_token": ""}, "mask_token=''; expected a token"),
        ({"mask_token": 4}, "mask_token=4; expected a token, or an object with"),
        (
            {"mask_token": {"content": "a", "lstrip": 1}},
            "expected a token, or an object",
        ),
        ({"extra_special_tokens": "a"}, "'a'; expected a list of tokens"),
        ({"added_tokens_decoder": ["a"]}, "expected an object of tokens by id"),
        ({"added_tokens_decoder": {"5": "a"}}, "expected an object of tokens by id"),
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "rules are not in the files"),
        ({"unk_token": "<none>"}, "has no '<none>', the token of unknown words"),
        ([], "is not a JSON object"),
    ],
)
def test_a_bad_tokenizer_config_json_is_one_line(fields, line, tmp_path):
    with pytest.raises(UserError) as error:
        bert(tmp_path, tokenizer_config=fields)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_config_json_may_name_the_class(tmp_path):
    folder = copy_of_golden(tmp_path / "base", tokenizer_class="BertweetTokenizer")
    made = read_tokenizer(resolve(str(folder)))  # tokenizer_config.json counts more
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="a BertweetTokenizer, whose rules"):
        read_tokenizer(resolve(str(folder)))
    (folder / "tokenizer.json").write_text(made.to_json())
    assert read_tokenizer(resolve(str(folder)))


def test_f8_a_cased_model_of_the_hub_stays_cased(tmp_path, monkeypatch):
    config = dataclasses.replace(
        families.preset("tiny"), family="bert", vocab=len(WORDS), pad_id=0, type_vocab=2
    )
    params = {"backbone": tiny.encoder(config).init(jax.random.key(0))}
    folder = tmp_path / "model"
    huggingface.save_model(folder, config, jax.device_get(params))
    on_disk = bert(
        folder,
        tokenizer_config={"do_lower_case": False},
        special_tokens_map={"mask_token": "[MASK]"},
        added_tokens={"[MASK]": 4},
    )
    with hub.serve(folder, {}) as (address, asked):
        hub.point_to(monkeypatch, address, tmp_path / "cache")
        base = resolve(hub.NAME)
    text = "Hello World"
    assert ids(read_tokenizer(base), text) == ids(on_disk, text) == [[2, 6, 8, 3]]
    got = {line.rpartition("/")[2] for line in asked if line.startswith("GET")}
    assert {"special_tokens_map.json", "added_tokens.json"} <= got


def test_f9_the_largest_id_is_a_row_of_the_model(tmp_path, capsys):
    folder = copy_of_golden(tmp_path / "base")
    vocab = json.loads((folder / "vocab.json").read_text()) | {"H": 5000}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    line = (
        f"the tokenizer of {folder} has id 5000 of 'H'; the model has 367; expected "
        "ids from 0 to 366. Use the tokenizer that was saved with the weights"
    )
    with pytest.raises(UserError) as error:
        hypelora_jax.base_model(str(folder))
    assert str(error.value) == line
    (folder / "model.safetensors").unlink()  # the line comes before weights are read
    args = ("--config=smoke", f"--config.model.path={folder}")
    for command in (("train", f"--workdir={tmp_path / 'run'}"), ("prepare",)):
        assert cli.main([command[0], *args, *command[1:]]) == 2
        assert line in capsys.readouterr().err


def test_f9_an_added_token_is_a_row_of_the_model(tmp_path):
    folder = copy_of_golden(tmp_path / "base")
    (folder / "added_tokens.json").write_text('{"<brand>": 367}')
    with pytest.raises(UserError, match="has id 367 of '<brand>'; the model has 367;"):
        read_tokenizer(resolve(str(folder)))


def test_f9_padding_is_a_row_of_the_model(tmp_path):
    folder = copy_of_golden(tmp_path / "base", pad_token_id=367)
    with pytest.raises(UserError, match="pad_token_id=367; expected .* 0 to 366"):
        read_tokenizer(resolve(str(folder)))


def test_f9_a_second_text_is_a_row_of_the_model(tmp_path):
    bert(tmp_path)
    fields = {"model_type": "bert", "vocab_size": len(WORDS), "type_vocab_size": 1}
    fields |= {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    fields |= {"intermediate_size": 8, "max_position_embeddings": 8}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    made, rows = read_tokenizer(resolve(str(tmp_path))), np.arange(1)
    assert ids(made, "hello") == [[2, 5, 3]]
    with pytest.raises(UserError, match="type_vocab_size 1; expected 2 or more"):
        made.encode(Table(rows, ["hello"], ["world"], rows), 8)
