"""Imports and exports the parameter tree as a Hugging Face checkpoint.

Both directions are strict: an unknown, missing, duplicate or mis-shaped tensor is an
error that names it. The family lists the tensors that may be extra (`names.ignored`),
and `from_hf` says which may be absent; both are logged.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath

from hypelora_jax import families
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop.tensor_paths import Entry, head_names, names, shapes
from hypelora_jax.interop.tensors import (
    check_floats,
    load_config,
    make_config,
    read_tensors,
    write_model,
)
from hypelora_jax.trees import flatten, unflatten
from hypelora_jax.types import Params

__all__ = [
    "Report",
    "from_hf",
    "load_config",
    "read_tensors",
    "save_model",
    "to_hf",
]


class Report(NamedTuple):
    """Names of tensors that an import ignored, and of parts that it did not find."""

    ignored: tuple[str, ...]  # tensors of the file that are not in the tree
    fresh: tuple[str, ...]  # "head/dense", "head/out": to be initialised


def _sorted_in(
    config: EncoderConfig, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, str], list[str]]:
    """(full name -> name in the file, names in the file to ignore)."""
    own = families.of(config).names
    known, prefix = names(config), own.prefix
    source: dict[str, str] = {}
    ignored = []
    for name in tensors:
        plain = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        plain = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", plain)
        full = next((n for n in (plain, prefix + plain) if n in known), None)
        if full is None:
            if not re.fullmatch(own.ignored, plain.removeprefix(prefix)):
                raise UserError(
                    f"unknown tensor {name!r} for a {config.family} model; expected "
                    "only tensors of its encoder and sequence head. Remove it from "
                    "the file"
                )
            ignored.append(name)
        elif full in source:
            raise UserError(
                f"tensors {source[full]!r} and {name!r} are the same parameter; "
                "expected one of them. Remove the other from the file"
            )
        else:
            source[full] = name
    return source, ignored


def _fresh(
    config: EncoderConfig, source: dict, tensors: Mapping, num_outputs: int
) -> list[str]:
    """Parts of the head that the file lacks; removes a misfit output from `source`."""
    head = head_names(config)
    fresh = [
        f"head/{part}"
        for part, name in head.items()
        if f"{name}.weight" not in source and f"{name}.bias" not in source
    ]
    if fresh == ["head/dense"] and len(_modules(head)) == 1:
        fresh = []  # the head is one module, so a file with half of it is damaged
    weight, bias = f"{head['out']}.weight", f"{head['out']}.bias"
    if weight in source and bias in source:
        got = tensors[source[weight]].shape
        if got != (num_outputs, config.width) and got[1:] == (config.width,):
            if tensors[source[bias]].shape == got[:1]:
                logging.info(
                    "%s has %d outputs, but %d are needed; starting it afresh",
                    weight,
                    got[0],
                    num_outputs,
                )
                del source[weight], source[bias]
                fresh.append("head/out")
    return fresh


def _modules(head: Mapping[str, str]) -> set[str]:
    """Top-level modules of a head's layers, such as `classifier`."""
    return {name.split(".")[0] for name in head.values()}


def _take(name: str, x: np.ndarray, entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    wanted = shape[::-1] if entry.turned else shape
    if x.shape != wanted:
        raise UserError(
            f"tensor {name!r} has shape {x.shape}; expected {wanted} as config.json "
            "says. Use the config.json this file was saved with"
        )
    check_floats(name, x)
    return x.T if entry.turned else x


def from_hf(
    config: EncoderConfig, tensors: Mapping[str, np.ndarray], num_outputs: int | None
) -> tuple[Params, Report]:
    """Convert to parameters `{"backbone": ..., "head": ...}` (NumPy, float32).

    Names may lack the family's prefix, and norms may use gamma and beta. The second
    result reports ignored tensors and absent parts. Parts of the head in its `fresh`
    are absent from the tree, and the caller initialises them: the file has no head, or
    an output layer with another number of labels. With `num_outputs` None the file's
    head is ignored, and the tree has no head.

    Raises:
      UserError: a tensor is unknown, missing, duplicate or mis-shaped, or it has NaN or
        infinity.
    """
    source, ignored = _sorted_in(config, tensors)
    entries = names(config)
    fresh: list[str] = []
    if num_outputs is None:
        entries = {n: e for n, e in entries.items() if not e.path.startswith("head/")}
        ignored += [source.pop(full) for full in [*source] if full not in entries]
    else:
        fresh = _fresh(config, source, tensors, num_outputs)
        layers = {n: e.path.rpartition("/")[0] for n, e in entries.items()}  # head/out
        entries = {n: e for n, e in entries.items() if layers[n] not in fresh}
    flat = _taken(config, entries, source, tensors, shapes(config, num_outputs))
    if ignored:
        logging.info(
            "tensors of the checkpoint that are not used: %s",
            ", ".join(sorted(ignored)),
        )
    if fresh:
        logging.info(
            "not in the checkpoint, so initialised afresh: %s", ", ".join(sorted(fresh))
        )
    return unflatten(flat), Report(tuple(ignored), tuple(fresh))


def _taken(
    config: EncoderConfig,
    entries: Mapping[str, Entry],
    source: Mapping[str, str],
    tensors: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """Arrays by path in our tree, with the arrays of layers stacked."""
    flat: dict[str, np.ndarray] = {}
    for full, entry in entries.items():
        if full not in source:
            raise UserError(
                f"tensor {full!r} is missing; expected every tensor of config.json's "
                f"{config.layers} layers. The file is incomplete, or of another model"
            )
        name, shape = source[full], wanted[entry.path]
        x = _take(name, tensors[name], entry, shape)
        if entry.layer is None:
            flat[entry.path] = np.ascontiguousarray(x)
        else:
            stack = (config.layers, *shape)
            flat.setdefault(entry.path, np.empty(stack, np.float32))[entry.layer] = x
    return flat


def to_hf(config: EncoderConfig, params: Params) -> dict[str, np.ndarray]:
    """Tensors by Hugging Face name with prefixes; the inverse of `from_hf`.

    A tree without `head` gives only the encoder.
    """
    flat = flatten({k: v for k, v in params.items() if k in ("backbone", "head")})
    tensors = {}
    for name, entry in names(config).items():
        if entry.path.startswith("head/") and entry.path not in flat:
            continue
        x = np.asarray(flat[entry.path])
        x = x if entry.layer is None else x[entry.layer]
        tensors[name] = np.ascontiguousarray(x.T if entry.turned else x)
    return tensors


def save_model(
    folder: epath.PathLike,
    config: EncoderConfig,
    params: Params,
    dtype: str = "float32",
    max_shard_bytes: int | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write `config.json` and safetensors in the form that transformers reads.

    Args:
      folder: created if it does not exist.
      config: family and sizes.
      params: the tree; without `head` only the encoder is written.
      dtype: dtype of the tensors: float32, float16 or bfloat16.
      max_shard_bytes: limit of a shard; None writes one file without an index.
      labels: names of the classes, in order of the logits.
    """
    outputs = params["head"]["out"]["bias"].shape[0] if "head" in params else None
    if labels is not None and len(labels) != outputs:
        raise UserError(
            f"there are {len(labels)} labels for a head of {outputs} outputs; "
            "expected one for each output"
        )
    fields = make_config(config, dtype, outputs, labels)
    write_model(folder, fields, to_hf(config, params), dtype, max_shard_bytes)
