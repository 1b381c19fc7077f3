"""Say what is installed, what is wrong, and what to do about it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from hypelora_jax import files

PACKAGES = (
    "hypelora_jax jax jaxlib flax optax orbax-checkpoint numpy tokenizers "
    "safetensors tensorflow-datasets ml-collections"
).split()
GIB = 2**30
MIN_MEMORY = 4 * GIB  # MiniLM with a hyper-network needs about half of it
MIN_DISK = 2 * GIB  # MiniLM, the data and a few runs


class Finding(NamedTuple):
    """One line of the report; `ok` is None if the line is only information."""

    name: str
    ok: bool | None
    text: str


def add_flags(parser: ArgumentParser) -> None:
    """Add no flags; the command takes none."""
    del parser


def run() -> bool:
    """Print the findings; return False if a check fails."""
    text, ok = report()
    print(text)
    return ok


def report() -> tuple[str, bool]:
    """Return the findings as text, one per line, and False if a check fails."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python,
        _packages,
        _devices,
        _memory,
        _disk,
        _caches,
    )
    findings = [finding for check in checks for finding in check()]
    marks = {True: "ok ", False: "NO ", None: "   "}
    lines = [f"{marks[f.ok]} {f.name:<20} {f.text}" for f in findings]
    wrong = sum(f.ok is False for f in findings)
    lines.append(f"{wrong} wrong" if wrong else "nothing is wrong")
    return "\n".join(lines), not wrong


def cache_folders() -> dict[str, Path]:
    """Return the download folders by their content; the environment may move them."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    hub = Path(os.environ.get("HF_HOME", home / "huggingface"))
    return {
        "cache": files.root(),
        "cache Hugging Face": Path(os.environ.get("HF_HUB_CACHE", hub / "hub")),
    }


def _python() -> Iterator[Finding]:
    ok = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} on {platform.platform()}"
    yield Finding("Python", ok, text if ok else f"{text}; install Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield Finding(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            text = "is not installed; run `pip install -e .` in the repository"
            yield Finding(name, False, text)


def _devices() -> Iterator[Finding]:
    import jax

    platforms = os.environ.get("JAX_PLATFORMS", "")
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        # If JAX finds no device, it may fail in a bare assert without a message.
        reason = " ".join(str(error).split()) or "no such device"
        way_out = "unset JAX_PLATFORMS, or install the extra `cuda` or `tpu`"
        text = f"{reason}; JAX_PLATFORMS={platforms!r}; {way_out}"
        yield Finding("devices", False, text)
        return
    backend = jax.default_backend()
    kinds = ", ".join(sorted({d.device_kind for d in devices}))
    yield Finding("devices", True, f"{len(devices)} x {kinds} (backend {backend})")
    if backend == "cpu" and not platforms and shutil.which("nvidia-smi"):
        text = "one is installed, but JAX uses the CPU; run `pip install -e '.[cuda]'`"
        yield Finding("NVIDIA driver", False, text)
    if backend != "tpu" and not platforms and importlib.util.find_spec("libtpu"):
        text = (
            "it is installed, but there is no TPU, so each run looks for one and "
            "prints errors; set JAX_PLATFORMS=cpu"
        )
        yield Finding("libtpu", False, text)


def _memory() -> Iterator[Finding]:
    cores = f"{os.cpu_count()} cores"
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no sysconf on Windows
        yield Finding("memory", None, f"{cores}, size unknown")
        return
    text = f"{cores}, {total / GIB:.1f} GiB"
    ok = total >= MIN_MEMORY
    yield Finding(
        "memory", ok, text if ok else f"{text}; lower config.optim.batch_size"
    )


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    text = f"{free / GIB:.1f} GiB free here"
    ok = free >= MIN_DISK
    yield Finding(
        "disk", ok, text if ok else f"{text}; use another disk, or free some space"
    )


def _caches() -> Iterator[Finding]:
    for name, folder in cache_folders().items():
        nearest = next(p for p in (folder, *folder.parents) if p.exists())
        try:
            tempfile.TemporaryFile(dir=nearest).close()
            yield Finding(name, True, str(folder))
        except OSError as error:
            way_out = f"set {files.ENV} or HF_HOME to a writable folder"
            yield Finding(name, False, f"{folder}: {error.strerror}; {way_out}")
