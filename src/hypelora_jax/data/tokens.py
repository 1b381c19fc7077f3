"""Turns texts into token ids with the model's own tokenizer, or with bytes.

The `tokenizers` library runs all forms. From a model folder it reads `tokenizer.json`,
else `vocab.json` and `merges.txt` (RoBERTa's byte-level BPE), else `vocab.txt` (BERT's
WordPiece). Models with random weights have no folder; they use a byte tokenizer of five
special tokens and 256 bytes.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from etils import epath
from tokenizers import models, pre_tokenizers, processors

from hypelora_jax import files
from hypelora_jax.data.tables import Table
from hypelora_jax.errors import UserError

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0 to 4; bytes from 5
# name of a special token in transformers -> its usual spellings
_ROLES = {
    "unk_token": ("[UNK]", "<unk>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
    "bos_token": ("<s>",),
    "eos_token": ("</s>",),
}


class TokenRoles(NamedTuple):
    """What a model family needs from its tokenizer.

    `segments` says whether tokens have segment types; `pairs` builds the processor
    that puts special tokens around one text or two, from a vocabulary.
    """

    segments: bool
    pairs: Callable[[dict[str, int]], processors.PostProcessor]


class Encoded(NamedTuple):
    """Token ids and segment types of N examples, int32 arrays with special tokens.

    `truncated` is the number of examples that were cut.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray]
    truncated: int


class Tokenizer(NamedTuple):
    """Encodes tables of texts: `encode(table, max_length) -> Encoded`.

    Pairs are cut longest first, as Hugging Face does. `pad_id` is the padding id of the
    model; `vocab_size` bounds the ids; `to_json() -> str` returns the contents of a
    tokenizer.json, without truncation or padding.
    """

    encode: Callable[[Table, int], Encoded]
    pad_id: int
    vocab_size: int
    to_json: Callable[[], str]


def tokenizer(
    folder: epath.PathLike | None, roles: TokenRoles, pad_id: int
) -> Tokenizer:
    """Return the tokenizer of a model folder, or the byte tokenizer for None.

    `roles` come from the model's family.

    Raises:
      UserError: the folder has no tokenizer, or its tokenizer cannot be read.
    """
    inner = _bytes(roles) if folder is None else _read_tokenizer(epath.Path(folder))
    inner.no_padding()  # a tokenizer.json may ask for padding

    def encode(table: Table, max_length: int) -> Encoded:
        return _encode(inner, table, max_length, typed=roles.segments)

    def to_json() -> str:
        fields = json.loads(inner.to_str())
        return files.to_json(fields | {"truncation": None}, ensure_ascii=False)

    return Tokenizer(encode, pad_id, inner.get_vocab_size(), to_json)


def hugging_face_files(
    own: Tokenizer, roles: TokenRoles, max_length: int
) -> dict[str, str]:
    """Return the files by name from which transformers loads the same tokenizer."""
    text = own.to_json()
    known = tokenizers.Tokenizer.from_str(text)
    fields: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if roles.segments:
        fields["model_input_names"].insert(1, "token_type_ids")
    for role, names in _ROLES.items():
        if known_names := [n for n in names if known.token_to_id(n) is not None]:
            fields[role] = known_names[0]
    config = files.to_json(fields, indent=1) + "\n"
    return {"tokenizer.json": text, "tokenizer_config.json": config}


def _encode(
    inner: tokenizers.Tokenizer, table: Table, max_length: int, typed: bool
) -> Encoded:
    rows: list[Any] = table.text
    if table.text_b is not None:
        rows = list(zip(table.text, table.text_b, strict=True))
    inner.enable_truncation(max_length, strategy="longest_first")
    found = inner.encode_batch(rows)
    ids = [np.asarray(e.ids, np.int32) for e in found]
    types = [np.asarray(e.type_ids, np.int32) * typed for e in found]
    return Encoded(ids, types, sum(bool(e.overflowing) for e in found))


def _read_tokenizer(folder: epath.Path) -> tokenizers.Tokenizer:
    """Read the first of the three forms that is in the folder."""
    forms = {
        ("tokenizer.json",): _fast,
        ("vocab.json", "merges.txt"): _byte_bpe,
        ("vocab.txt",): _wordpiece,
    }
    for names, build in forms.items():
        if all((folder / name).exists() for name in names):
            try:
                return build(folder)
            except Exception as e:  # the library raises bare Exception
                why = " ".join(str(e).split())[:200]
                raise UserError(
                    f"{folder / names[0]} is not a tokenizer ({why}); expected one "
                    "that `tokenizers` reads. Fetch the file again"
                ) from e
    raise UserError(
        f"{folder} has no tokenizer; expected tokenizer.json, or vocab.json with "
        "merges.txt, or vocab.txt. Copy them from the model's source"
    )


def _fast(folder: epath.Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text())


def _byte_bpe(folder: epath.Path) -> tokenizers.Tokenizer:
    vocab = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()
    merges = [tuple(x.split(" ")) for x in lines if x and not x.startswith("#version")]
    inner = tokenizers.Tokenizer(models.BPE(vocab, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = roberta_pairs(vocab)
    known = [s for s in SPECIALS if s in vocab]
    # The mask takes the space before it, as in Hugging Face's RoBERTa.
    inner.add_special_tokens(
        [tokenizers.AddedToken(s, lstrip=s == "<mask>") for s in known]
    )
    return inner


def roberta_pairs(vocab: dict[str, int]) -> processors.RobertaProcessing:
    """Build <s> text </s>, or <s> text </s></s> second text </s>."""
    return processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), add_prefix_space=False
    )


def _wordpiece(folder: epath.Path) -> tokenizers.Tokenizer:
    words = (folder / "vocab.txt").read_text().split("\n")
    vocab = {w.removesuffix("\r"): i for i, w in enumerate(words) if w}
    settings = folder / "tokenizer_config.json"
    known = json.loads(settings.read_text()) if settings.exists() else {}
    return tokenizers.BertWordPieceTokenizer(
        vocab,
        lowercase=known.get("do_lower_case", True),
        strip_accents=known.get("strip_accents"),
        handle_chinese_chars=known.get("tokenize_chinese_chars", True),
    )


def bert_pairs(vocab: dict[str, int]) -> processors.BertProcessing:
    """Build <s> text </s>, or <s> text </s> second text </s>, by BERT's rules."""
    return processors.BertProcessing(("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]))


def _bytes(roles: TokenRoles) -> tokenizers.Tokenizer:
    """Build byte-level BPE without merges, so that every byte is a token."""
    vocab = {name: i for i, name in enumerate(SPECIALS)}
    vocab |= {c: len(SPECIALS) + byte for byte, c in enumerate(_byte_letters())}
    inner = tokenizers.Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    inner.post_processor = roles.pairs(vocab)
    return inner


def _byte_letters() -> list[str]:
    """Return the letter for each byte in byte-level BPE (GPT-2's table)."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (256 + n for n in range(256))
    return [chr(b if b in shown else next(hidden)) for b in range(256)]
