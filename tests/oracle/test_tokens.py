"""Token ids and segment types are those of transformers' AutoTokenizer.

Each case is a folder: a vocabulary in one of its forms, and files next to it. The same
folder, and the one that an export of its tokenizer writes, is read by both sides.
"""

import itertools
import json

import numpy as np
import pytest
import transformers
from tokenizers import pre_tokenizers

from hypelora_jax import families
from hypelora_jax.data import tokens
from hypelora_jax.data.tables import Table

TEXTS = [
    "Hello <brand> World",
    "hello<brand>world  Hello",
    "Héllo wörld, naïve Ångström",
    "中文 and 漢字hello",
    "😀 hello 🎉",
    "  three   blanks  ",
    "",
    "   ",
    "[MASK] <mask> a [e1] [E1]x[E2] <BRAND>",
    "Unknown zzz!? new york",
    "\tHello\u00a0World\u2028x\u200b",
]
ALPHABET = [*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"<>[]1!?,"]
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "Hello", "world", "World"),
    *("new", "york", "three", "é", "ö", "wör", "##ö", "中", "文", "😀", "##ld", "Hé"),
    *(x for letter in ALPHABET for x in (letter, f"##{letter}")),
]
BRAND = {"content": "<brand>", "lstrip": False, "rstrip": False, "single_word": False}
BRAND |= {"normalized": False, "special": False}
MARKED = {"[E1]": BRAND | {"content": "[E1]"}, "[E2]": BRAND | {"content": "[E2]"}}


def bert(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return len(WORDS)


def roberta(folder):
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    merges = [("H", "e"), ("h", "e"), ("l", "l"), ("Ġ", "h"), ("Ġ", "a"), ("Ġh", "e")]
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocab = [*names, *sorted(letters), *map("".join, merges)]
    (folder / "vocab.json").write_text(json.dumps({x: i for i, x in enumerate(vocab)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return len(vocab)


def xlm_roberta(folder):
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [
        "▁",
        *ALPHABET,
        "▁hello",
        "▁Hello",
        "▁world",
        "world",
        "é",
        "中",
        "▁three",
    ]
    scores = [
        *((x, 0.0) for x in names),
        *((x, -float(len(x) < 2) - 1) for x in pieces),
    ]
    scores.append(("<mask>", 0.0))
    made = transformers.XLMRobertaTokenizer(vocab=scores)
    made.save_pretrained(folder)
    return len(scores)


KINDS = {
    "bert": (bert, 0),
    "distilbert": (bert, 0),
    "roberta": (roberta, 1),
    "xlm-roberta": (xlm_roberta, 1),
}
FORMS = [("bert", "vocab"), ("distilbert", "vocab"), ("roberta", "vocab")]
FORMS += [(name, "json") for name in KINDS]


def config(**fields):
    return {"tokenizer_config.json": fields}


def added(n, *tokens):
    return {str(n + i): token for i, token in enumerate(tokens)}


# name -> files by the number of words in the vocabulary
CASES = {
    "nothing": lambda n: {},
    "empty": lambda n: config(),
    "cased": lambda n: config(do_lower_case=False),
    "accents": lambda n: config(strip_accents=False),
    "no accents": lambda n: config(do_lower_case=False, strip_accents=True),
    "no chinese": lambda n: config(tokenize_chinese_chars=False),
    "space": lambda n: config(add_prefix_space=True),
    "no space": lambda n: config(add_prefix_space=False),
    "added file": lambda n: {"added_tokens.json": {"<brand>": n, "[E1]": n + 1}},
    "added file, cased": lambda n: (
        config(do_lower_case=False) | {"added_tokens.json": {"<brand>": n}}
    ),
    "added special": lambda n: (
        config(additional_special_tokens=["[E1]", "[E2]"])
        | {"added_tokens.json": {"[E2]": n + 1, "[E1]": n}}
    ),
    "special map": lambda n: {
        "special_tokens_map.json": {
            "additional_special_tokens": ["[E1]", "[E2]"],
            "mask_token": {
                "content": "<brand>",
                "lstrip": True,
                "rstrip": True,
                "normalized": False,
                "single_word": False,
            },
        },
        "added_tokens.json": {"[E1]": n, "[E2]": n + 1, "<brand>": n + 2},
    },
    "extra": lambda n: config(extra_special_tokens=["<brand>", "[E1]"]),
    "named": lambda n: config(mask_token="<brand>", pad_token="[E1]"),
    "marked mask": lambda n: config(
        mask_token={
            "__type": "AddedToken",
            "content": "<brand>",
            "lstrip": True,
            "rstrip": False,
            "normalized": True,
            "single_word": False,
        }
    ),
    "own role": lambda n: config(brand_token="<brand>"),
    "own roles": lambda n: (
        config(extra_special_tokens={"brand": "<brand>"}, pad_token="[E1]")
        | {"added_tokens.json": {"<brand>": n, "[E1]": n + 1}}
    ),
    "ends": lambda n: config(cls_token="[E1]", sep_token="[E2]"),
    "ends of sentences": lambda n: config(bos_token="[E1]", eos_token="[E2]"),
    "split": lambda n: config(
        split_special_tokens=True, added_tokens_decoder=added(n, BRAND)
    ),
    "left": lambda n: config(truncation_side="left"),
    "general": lambda n: config(
        tokenizer_class="PreTrainedTokenizerFast",
        do_lower_case=False,
        add_prefix_space=True,
        added_tokens_decoder=added(n, BRAND),
    ),
}
for marks in itertools.chain(
    ({name: True} for name in ("lstrip", "rstrip", "single_word", "normalized")),
    ({"special": True}, {"special": True, "normalized": True, "lstrip": True}),
    ({"lstrip": True, "rstrip": True, "normalized": True},),
):
    CASES["added: " + " ".join(marks)] = lambda n, marks=marks: config(
        do_lower_case="normalized" in marks,
        added_tokens_decoder=added(n, BRAND | marks, MARKED["[E1]"] | marks),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders with a vocabulary and nothing next to it, by kind and form."""
    out = {}
    for name, form in FORMS:
        folder = tmp_path_factory.mktemp(f"{name}_{form}")
        (folder / "config.json").write_text(json.dumps({"model_type": name}))
        size = KINDS[name][0](folder)
        if form == "json":
            transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
            (folder / "tokenizer_config.json").unlink()
        out[name, form] = folder, size
    return out


def copied(source, folder, files):
    for file in source.iterdir():
        if file.name.startswith(("vocab", "merges", "tokenizer.json", "config.json")):
            (folder / file.name).write_bytes(file.read_bytes())
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields))


def same(own, folder, segments, max_length=40):
    """Compare single texts and pairs, whole and cut, on both sides."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    rows = np.arange(len(TEXTS))
    for other, length in itertools.product((None, TEXTS[::-1]), (max_length, 8)):
        got = own.encode(Table(rows, TEXTS, other, rows), length)
        wanted = theirs(
            TEXTS,
            other,
            truncation="longest_first",
            max_length=length,
            return_token_type_ids=True,
        )
        for i, text in enumerate(TEXTS):
            assert got.ids[i].tolist() == wanted["input_ids"][i], (text, length)
            types = [x * segments for x in wanted["token_type_ids"][i]]
            assert got.types[i].tolist() == types, (text, length)


def agree(name, folder, out):
    """Compare the tokenizer of a folder, and that of its export, on both sides."""
    roles, pad_id = families.FAMILIES[name].tokens, KINDS[name][1]
    own = tokens.tokenizer(folder, roles, pad_id)
    same(own, folder, roles.segments)
    out.mkdir()
    (out / "config.json").write_text((folder / "config.json").read_text())
    for file, text in tokens.hugging_face_files(own, roles, 40).items():
        (out / file).write_text(text)
    same(own, out, roles.segments)
    same(tokens.tokenizer(out, roles, pad_id), out, roles.segments)


# Without tokenizer.json, transformers reads nothing with the class of "general".
RUNS = [
    (*model, case)
    for model, case in itertools.product(FORMS, CASES)
    if case != "general" or model[1] == "json"
]


@pytest.mark.parametrize(("name", "form", "case"), RUNS)
def test_ids_are_those_of_transformers(name, form, case, made, tmp_path):
    source, size = made[name, form]
    copied(source, tmp_path, CASES[case](size))
    agree(name, tmp_path, tmp_path / "export")
