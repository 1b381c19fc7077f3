"""Files of a Hugging Face folder: `config.json`, safetensors, shards and their index.

Only safetensors are read, because reading a pickle can run code.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging
from etils import epath

from hypelora_jax import families, files
from hypelora_jax.config.json_fields import JsonFields
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig

MODEL_CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Types of safetensors that are read as float32; those of four and six bits have no
# NumPy type and are refused. Tensors of the others keep their type, because a file may
# have some that are not used, such as position_ids.
_FLOATS = {"F64": np.dtype(np.float64), "F32": DTYPES["float32"]}
_FLOATS |= {"F16": DTYPES["float16"], "BF16": DTYPES["bfloat16"]}
_OTHERS = {
    f"{c}{8 * n}": np.dtype(f"{c.lower()}{n}") for c in "IU" for n in (1, 2, 4, 8)
}
_OTHERS |= {"BOOL": np.dtype(np.bool_), "C64": np.dtype(np.complex64)}
_OTHERS |= {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


def read_fields(path: epath.Path) -> JsonFields:
    """Read the JSON object of a file; a missing or malformed file is a `UserError`."""
    try:
        return JsonFields(str(path), files.read_json(path, "copy the file again"))
    except FileNotFoundError as e:
        raise UserError(
            f"{path} does not exist; expected a folder with config.json and "
            "model.safetensors. Check model.path"
        ) from e
    except OSError as e:
        raise UserError(
            f"{path} cannot be read ({str(e).splitlines()[0]}); expected a JSON "
            "object. Copy the file again"
        ) from e


def load_config(folder: epath.PathLike) -> EncoderConfig:
    """Read the sizes and constants of a model from its folder's `config.json`.

    Raises:
      UserError: the file is missing or not JSON, a field is missing or out of range, or
        the model type is not supported.
    """
    path = epath.Path(folder) / MODEL_CONFIG
    fields = read_fields(path)
    known = f"one of {', '.join(families.FAMILIES)}, as no other is supported"
    name = fields.read("model_type", lambda x: str(x) in families.FAMILIES, known)
    try:
        return families.FAMILIES[name].config(fields)
    except UserError as e:  # some checks see only the numbers
        told = str(e) if str(e).startswith(str(path)) else f"{path}: {e}"
        raise UserError(told) from e


def make_config(
    config: EncoderConfig,
    dtype: str = "float32",
    outputs: int | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Fields of `config.json`, the inverse of `load_config`.

    Without `outputs` the model has no head.
    """
    fields = families.of(config).fields(config, outputs is not None)
    fields |= {"dtype": dtype, "torch_dtype": dtype}  # transformers 4 reads torch_dtype
    if outputs is None:
        return fields
    names = labels or [f"LABEL_{i}" for i in range(outputs)]
    return fields | {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "regression" if outputs == 1 else None,
    }


def read_file(path: epath.Path) -> dict[str, np.ndarray]:
    """Read one file; floats of 16, 32 and 64 bits become float32.

    Tensors of other types keep their type. `check_floats` refuses them by name.

    Raises:
      UserError: the file is damaged, or has a tensor of a type that NumPy lacks.
    """
    try:
        entries = safetensors.deserialize(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as e:
        raise UserError(
            f"{path} cannot be read as safetensors ({e}); expected a whole file. Copy "
            "or download it again"
        ) from e
    tensors = {}
    for name, entry in entries:
        kind = entry["dtype"]
        stored = (_FLOATS | _OTHERS).get(kind)
        if stored is None:
            raise UserError(
                f"{path}: tensor {name!r} has type {kind}; expected one of "
                f"{', '.join(_FLOATS)}. Save the weights without quantization"
            )
        x = np.frombuffer(entry["data"], stored).reshape(entry["shape"])
        if kind in _FLOATS:
            with np.errstate(over="ignore"):  # `check_floats` refuses infinity
                x = x.astype(np.float32, copy=False)
        tensors[name] = x
    if wide := [name for name, entry in entries if entry["dtype"] == "F64"]:
        logging.info("%s: %d tensors of float64 become float32", path, len(wide))
    return tensors


def check_floats(name: str, x: np.ndarray) -> None:
    """Check that a tensor from `read_file` has finite floats.

    Raises:
      UserError: it has another type, or NaN or infinity.
    """
    if x.dtype != np.float32:
        raise UserError(
            f"tensor {name!r} has dtype {x.dtype}; expected float32, float16, bfloat16 "
            "or float64. Save the weights without quantization"
        )
    if not np.isfinite(x).all():
        raise UserError(
            f"tensor {name!r} contains NaN or infinity; expected finite numbers. The "
            "file is damaged or its training diverged; take another checkpoint"
        )


def _read_shards(folder: epath.Path) -> dict[str, np.ndarray]:
    path = folder / INDEX
    fields = read_fields(path)
    where = fields.object("weight_map").values
    if not where:
        fields.fault("weight_map", "the shard of each tensor")
    for shard in where.values():  # plain names only: no way out of the folder
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", str(shard)):
            raise UserError(
                f"{path} names the shard {shard!r}; expected a plain file name that "
                "ends in .safetensors, in the same folder"
            )
    tensors: dict[str, np.ndarray] = {}
    for shard in sorted(set(where.values())):
        for name, x in read_file(folder / shard).items():
            if where.get(name) != shard:
                raise UserError(
                    f"{folder / shard} has {name!r}, which {INDEX} places in "
                    f"{where.get(name)}; expected both to agree. Copy the folder again"
                )
            tensors[name] = x
    for name, shard in where.items():
        if name not in tensors:
            raise UserError(
                f"{folder / shard} does not have {name!r}, which {INDEX} places "
                "there; expected both to agree. Copy the folder again"
            )
    return tensors


def read_tensors(folder: epath.PathLike) -> dict[str, np.ndarray]:
    """Read the tensors of a folder from `model.safetensors` or its indexed shards.

    Floats of 16, 32 and 64 bits become float32; tensors of other types keep theirs.

    Raises:
      UserError: there are no safetensors (pickles are refused), a file is damaged, or
        the index does not agree with its shards or points outside the folder.
    """
    folder = epath.Path(folder)
    if (folder / SINGLE).exists():
        return read_file(folder / SINGLE)
    if (folder / INDEX).exists():
        return _read_shards(folder)
    if any(
        (folder / f"pytorch_model.bin{end}").exists() for end in ("", ".index.json")
    ):
        raise UserError(
            f"{folder} has only pytorch_model.bin, a pickle, which can run code when "
            f"read; expected {SINGLE}. Load it with transformers where you trust it "
            "and call save_pretrained, which writes safetensors"
        )
    raise UserError(
        f"{folder} has no {SINGLE}; expected that file, or {INDEX} with its shards"
    )


def _shards(tensors: Mapping[str, np.ndarray], limit: int) -> list[dict]:
    """Split tensors in order; start a new shard before one exceeds `limit` bytes."""
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, x in tensors.items():
        if shards[-1] and size + x.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = x
        size += x.nbytes
    return shards


def write_model(
    folder: epath.PathLike,
    fields: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    dtype: str,
    max_shard_bytes: int | None = None,
) -> None:
    """Write tensors and then `config.json`, so that a folder with a config is whole.

    Raises:
      UserError: the dtype is unknown, or the folder cannot be written.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    folder = epath.Path(folder)
    cast = {k: np.ascontiguousarray(x, DTYPES[dtype]) for k, x in tensors.items()}
    total = sum(x.nbytes for x in cast.values())
    shards = [cast] if max_shard_bytes is None else _shards(cast, max_shard_bytes)
    named = {SINGLE: cast}
    if len(shards) > 1:
        stem = f"of-{len(shards):05d}.safetensors"
        named = {f"model-{i:05d}-{stem}": s for i, s in enumerate(shards, start=1)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in (SINGLE, INDEX):  # an earlier save would hide this one
            (folder / old).unlink(missing_ok=True)
        for name, shard in named.items():
            data = safetensors.numpy.save(shard, metadata={"format": "pt"})
            files.write_whole(folder / name, data)
        if len(shards) > 1:
            where = {n: file for file, shard in named.items() for n in shard}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            files.write_json(folder / INDEX, index)
        files.write_json(folder / MODEL_CONFIG, dict(fields))
    except OSError as e:
        raise UserError(
            f"cannot write {folder} ({e.strerror or e}); expected a writable folder "
            "with free space. Choose another"
        ) from e
