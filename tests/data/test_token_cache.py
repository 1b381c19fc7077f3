"""Tokens kept in the cache folder: the same as made anew, whatever the file is like."""

import numpy as np
import pytest

from hypelora_jax.data import tokens
from hypelora_jax.data.tables import Table
from hypelora_jax.errors import UserError
from hypelora_jax.families.bert import BERT
from hypelora_jax.families.distilbert import DISTILBERT
from hypelora_jax.families.roberta import ROBERTA

TEXTS = ["a joy", "", "dull \ud800", "a much longer text", "x\0y"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPELORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "CACHED", 2)
    return tmp_path / "cache" / "tokens"


def table(texts, pair=False):
    index = np.arange(len(texts))
    return Table(index, list(texts), list(texts[::-1]) if pair else None, index)


def made(family=BERT, encode=None):
    own = tokens.tokenizer(None, family.tokens, 0)
    return tokens.cached(own if encode is None else own._replace(encode=encode))


def forbidden(table, max_length):
    assert len(table.text) == 1, "tokenised again"


def assert_same(one, two):
    assert one.truncated == two.truncated
    for left, right in zip((*one.ids, *one.types), (*two.ids, *two.types), strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype == np.int32


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("family", [BERT, ROBERTA])
def test_the_second_time_tokens_come_from_the_file(pair, family, folder):
    texts = [text.replace("\ud800", "") for text in TEXTS]
    wanted = tokens.tokenizer(None, family.tokens, 0).encode(table(texts, pair), 9)
    assert wanted.truncated
    assert_same(made(family).encode(table(texts, pair), 9), wanted)
    assert len(list(folder.iterdir())) == 1
    assert_same(made(family, forbidden).encode(table(texts, pair), 9), wanted)


def test_whatever_changes_the_tokens_has_its_own_file(folder):
    texts = ["ab", "c", ""]
    made().encode(table(texts), 9)
    made().encode(table(texts), 8)  # cut to another length
    made().encode(table(texts, pair=True), 9)
    made().encode(table(["a", "bc", ""]), 9)  # the same letters
    made().encode(table([*texts, ""]), 9)
    made(DISTILBERT).encode(table(texts), 9)  # the same ids, without types
    made(ROBERTA).encode(table(texts), 9)  # other pairs
    assert len(list(folder.iterdir())) == 7
    made().encode(table(texts), 9)
    assert len(list(folder.iterdir())) == 7


def test_few_texts_are_not_kept(folder):
    made().encode(table(["one"]), 9)
    assert not folder.exists()


@pytest.mark.fault("a file of cached tokens is damaged", "it is written again")
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other", "folder"])
def test_a_damaged_file_is_written_again(damage, folder):
    rows = table(["one text", "and another"])
    wanted = made().encode(rows, 9)
    (file,) = folder.iterdir()
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 8] ^= 1
    other = {"flipped": bytes(whole), "cut": whole[:-30], "empty": b""}
    if damage == "other":
        made().encode(table(["three", "other", "texts"]), 9)
        (second,) = (one for one in folder.iterdir() if one != file)
        file.write_bytes(second.read_bytes())
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(other[damage])
    assert_same(made().encode(rows, 9), wanted)
    if damage != "folder":  # which cannot be written
        assert_same(made(encode=forbidden).encode(rows, 9), wanted)


def test_the_oldest_files_make_room(folder, monkeypatch):
    def texts(i):
        return table([f"text {i}", "another"])

    made().encode(texts(0), 9)
    (size,) = (file.stat().st_size for file in folder.iterdir())
    monkeypatch.setattr(tokens, "CACHE_BYTES", 3 * size)
    for i in range(1, 6):
        made().encode(texts(i), 9)
        assert len(list(folder.iterdir())) == min(i + 1, 3)
    made(encode=forbidden).encode(texts(5), 9)


def test_a_model_that_refuses_a_table_refuses_it_from_the_cache(folder):
    made().encode(table(["a", "b"], pair=True), 9)

    def refusing(table, max_length):
        raise UserError("no pairs")

    with pytest.raises(UserError, match="no pairs"):
        made(encode=refusing).encode(table(["a", "b"], pair=True), 9)
