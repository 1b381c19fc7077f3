"""Turns texts into token ids with the model's own tokenizer, or with bytes.

The `tokenizers` library runs both. `data.vocabulary` reads the tokenizer of a model
folder. Models with random weights have no folder; they use a byte tokenizer of five
special tokens and 256 bytes.
"""

import functools
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from absl import logging
from etils import epath
from tokenizers import models, pre_tokenizers, processors

from hypelora_jax import files
from hypelora_jax.data import npz, tables
from hypelora_jax.data.tables import Table
from hypelora_jax.data.vocabulary import token_classes
from hypelora_jax.data.vocabulary.token_classes import SENTENCE, Vocabulary
from hypelora_jax.data.vocabulary.token_settings import ROLES

CACHED = 2000  # texts; fewer take a tenth of a second, and are not cached
CACHE_BYTES = 2**30  # of all cached tokens; the oldest files are deleted
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # ids 0 to 4; bytes from 5


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
    model. Ids are below `vocab_size`, and `last` is the token of the largest one.
    `to_json() -> str` returns the contents of a tokenizer.json, without truncation or
    padding, and `fields` are those of a tokenizer_config.json that go with it.
    `digest() -> str` is the SHA-256 of all that decides what `encode` returns.
    """

    encode: Callable[[Table, int], Encoded]
    pad_id: int
    vocab_size: int
    last: str
    to_json: Callable[[], str]
    fields: Mapping[str, Any]
    digest: Callable[[], str]


def tokenizer(
    folder: epath.PathLike | None,
    roles: TokenRoles,
    pad_id: int,
    tokenizer_class: str = "",
) -> Tokenizer:
    """Return the tokenizer of a model folder, or the byte tokenizer for None.

    `roles` come from the model's family, `tokenizer_class` from its config.json.

    Raises:
      UserError: the folder has no tokenizer, or its tokenizer cannot be read.
    """
    if folder is None:
        inner, special, side = _bytes(roles)
    else:
        inner, special, side = token_classes.read(epath.Path(folder), tokenizer_class)

    def encode(table: Table, max_length: int) -> Encoded:
        inner.enable_truncation(max_length, strategy="longest_first", direction=side)
        return _encode(inner, table, typed=roles.segments)

    def to_json() -> str:
        fields = json.loads(inner.to_str())
        return files.to_json(fields | {"truncation": None}, ensure_ascii=False)

    vocab = inner.get_vocab()
    last = max(vocab, key=vocab.__getitem__)
    fields: dict[str, Any] = special | {"truncation_side": side}
    fields["split_special_tokens"] = inner.encode_special_tokens

    @functools.cache
    def digest() -> str:
        decides = (tokenizers.__version__, roles.segments, to_json(), fields)
        return hashlib.sha256(files.to_json(decides).encode()).hexdigest()

    return Tokenizer(encode, pad_id, vocab[last] + 1, last, to_json, fields, digest)


def hugging_face_files(
    own: Tokenizer, roles: TokenRoles, max_length: int
) -> dict[str, str]:
    """Return the files by name from which transformers loads the same tokenizer."""
    fields: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        **own.fields,
    }
    if roles.segments:
        fields["model_input_names"].insert(1, "token_type_ids")
    config = files.to_json(fields, indent=1) + "\n"
    return {"tokenizer.json": own.to_json(), "tokenizer_config.json": config}


def _encode(inner: tokenizers.Tokenizer, table: Table, typed: bool) -> Encoded:
    rows: list[Any] = table.text
    if table.text_b is not None:
        rows = list(zip(table.text, table.text_b, strict=True))
    found = inner.encode_batch(rows)
    ids = [np.asarray(e.ids, np.int32) for e in found]
    types = [np.asarray(e.type_ids, np.int32) * typed for e in found]
    return Encoded(ids, types, sum(bool(e.overflowing) for e in found))


def cached(own: Tokenizer) -> Tokenizer:
    """Return a tokenizer that keeps the tokens of large tables in the cache folder.

    A file there is named by the tokenizer, the texts and the length that they are cut
    to. A file that cannot be read is written again.
    """

    def encode(table: Table, max_length: int) -> Encoded:
        if len(table.text) < CACHED:
            return own.encode(table, max_length)
        own.encode(tables.take(table, np.arange(1)), max_length)  # refuses as for all
        texts = hashlib.sha256(f"{own.digest()} {max_length}".encode())
        for column in (table.text, table.text_b or []):
            texts.update(np.array([len(column), *map(len, column)]).tobytes())
            texts.update("".join(column).encode("utf-8", "surrogatepass"))
        path = files.root() / "tokens" / f"{texts.hexdigest()}.npz"
        found = _read(path, len(table.text))
        if found is None:
            found = own.encode(table, max_length)
            _write(path, found)
        return found

    return own._replace(encode=encode)


def _read(path: Path, count: int) -> Encoded | None:
    """Return the tokens of `count` examples in a file, or None if it has none."""
    try:
        found = npz.read(path)
        ids, types, size_N = (
            found[n].astype(np.int32) for n in ("ids", "types", "size")
        )
        truncated = int(found["truncated"])
    except FileNotFoundError:
        return None
    except Exception as e:  # whatever is wrong with it, it is written again
        logging.info("%s is written again (%s)", path, e)
        return None
    ends = np.cumsum(size_N)
    if len(size_N) != count or {len(ids), len(types)} != {int(ends[-1])}:
        return None
    cuts = list(zip((ends - size_N).tolist(), ends.tolist(), strict=True))
    split = [[x[i:j] for i, j in cuts] for x in (ids, types)]
    return Encoded(split[0], split[1], truncated)


def _write(path: Path, encoded: Encoded) -> None:
    """Write the tokens of examples, and delete the oldest files beyond CACHE_BYTES."""
    data, size_N = io.BytesIO(), np.array([len(x) for x in encoded.ids])
    ids, types = (np.concatenate(x) for x in (encoded.ids, encoded.types))
    np.savez(data, ids=ids, types=types, size=size_N, truncated=encoded.truncated)
    try:
        files.write_whole(path, data.getvalue())
        kept = [(file, file.stat()) for file in path.parent.iterdir()]
        kept.sort(key=lambda one: one[1].st_mtime)
        left = sum(about.st_size for _, about in kept)
        for file, about in kept[:-1]:
            if left > CACHE_BYTES:
                file.unlink(missing_ok=True)
                left -= about.st_size
    except OSError as e:  # no space, no right to write, or another process deletes too
        logging.info("tokens are not cached: %s", e)


def roberta_pairs(vocab: dict[str, int]) -> processors.RobertaProcessing:
    """Build <s> text </s>, or <s> text </s></s> second text </s>."""
    return processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), add_prefix_space=False
    )


def bert_pairs(vocab: dict[str, int]) -> processors.BertProcessing:
    """Build <s> text </s>, or <s> text </s> second text </s>, by BERT's rules."""
    return processors.BertProcessing(("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]))


def _bytes(roles: TokenRoles) -> Vocabulary:
    """Build byte-level BPE without merges, so that every byte is a token.

    The names of special tokens in a text are bytes as well.
    """
    vocab = {name: i for i, name in enumerate(SPECIALS)}
    vocab |= {c: len(SPECIALS) + byte for byte, c in enumerate(_byte_letters())}
    inner = tokenizers.Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    inner.post_processor = roles.pairs(vocab)
    inner.encode_special_tokens = True
    return Vocabulary(inner, dict(zip(ROLES, SENTENCE, strict=True)), "right")


def _byte_letters() -> list[str]:
    """Return the letter for each byte in byte-level BPE (GPT-2's table)."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (256 + n for n in range(256))
    return [chr(b if b in shown else next(hidden)) for b in range(256)]
