"""Checksums of a checkpoint's files, so that damage is found before a restore.

Orbax does not notice a flipped bit in its array data. A complete folder therefore gets
manifest.json, which has the size and SHA-256 of every file in it. The JSON files that
this package adds are sealed, that is, they include the SHA-256 of their content.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from etils import epath

from hypelora_jax import files as files_lib
from hypelora_jax.run.paths import MANIFEST

BLOCK = 1 << 22  # bytes read at a time
# Orbax writes the entry STAMP of this JSON file after all else, so the checksum leaves
# it out. Orbax adds the entry HANDLERS in a separate thread, and a small save can end
# before that thread does, so `write` waits for the entry.
STAMPED, STAMP = "_CHECKPOINT_METADATA", "commit_timestamp_nsecs"
HANDLERS, PATIENCE = "item_handlers", 30.0  # seconds


def seal(value: Any) -> str:
    """Return a value and its SHA-256 as JSON text."""
    return (
        files_lib.to_json({"sha256": _digest(value), "value": value}, indent=1) + "\n"
    )


def unseal(data: bytes) -> Any:
    """Return the value of a sealed text.

    Raises:
      ValueError: the text is not as it was written.
    """
    sealed = json.loads(data.decode())
    if not isinstance(sealed, dict) or sealed.keys() != {"sha256", "value"}:
        raise ValueError("not a sealed file")
    if sealed["sha256"] != _digest(sealed["value"]):
        raise ValueError("its SHA-256 differs")
    return sealed["value"]


def write(folder: epath.Path, without: frozenset[str] = frozenset()) -> None:
    """Write manifest.json for the files that are in the folder now.

    `without` names files of the folder itself that the manifest leaves out.
    """
    _wait_for_handlers(folder / STAMPED)
    leave = without | {MANIFEST}
    sums = {name: _sum(path) for name, path in files(folder) if name not in leave}
    files_lib.write_whole(folder / MANIFEST, seal(sums))


def _wait_for_handlers(path: epath.Path) -> None:
    """Wait until the file has the handlers, but at most PATIENCE seconds."""
    limit = time.monotonic() + PATIENCE
    while path.exists() and time.monotonic() < limit:
        try:
            if json.loads(path.read_bytes().decode()).get(HANDLERS):
                return
        except ValueError:  # half written
            pass
        time.sleep(0.01)


def exists(folder: epath.Path) -> bool:
    """Whether the folder was complete once."""
    return (folder / MANIFEST).exists()


def fault(folder: epath.Path, only: str = "") -> str | None:
    """Return the first file that differs from the manifest, and how; else None.

    If `only` is given, only the file of that name is checked.
    """
    try:
        wanted = unseal((folder / MANIFEST).read_bytes())
        for name, entry in wanted.items():
            if only and name != only:
                continue
            if wrong := _fault_of(folder / name, entry):
                return f"{name} {wrong}"
    except FileNotFoundError:
        return f"{MANIFEST} is missing: its save was not finished"
    except ValueError as e:
        return f"{MANIFEST} is damaged: {e}"
    except OSError as e:
        return f"it cannot be read: {e.strerror or e}"
    return None


def _fault_of(path: epath.Path, wanted: dict[str, Any]) -> str | None:
    if not path.exists():
        return "is missing"
    try:
        got = _sum(path)
    except (ValueError, TypeError, OverflowError):  # from the JSON of STAMPED
        return "is damaged"
    if got["bytes"] != wanted["bytes"]:
        return f"is damaged: {got['bytes']} bytes of {wanted['bytes']}"
    if got["sha256"] != wanted["sha256"]:
        return "is damaged: its SHA-256 differs"
    return None


def _digest(value: Any) -> str:
    return hashlib.sha256(files_lib.to_json(value, sort_keys=True).encode()).hexdigest()


def files(folder: epath.Path, prefix: str = "") -> Iterator[tuple[str, epath.Path]]:
    """Yield (name relative to the folder, path) of every file, sorted."""
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if path.is_dir():
            yield from files(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path


def _sum(path: epath.Path) -> dict[str, int | str]:
    """Return the number of bytes and the SHA-256 of a file."""
    size, digest = 0, hashlib.sha256()
    for block in _blocks(path):
        size += len(block)
        digest.update(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _blocks(path: epath.Path) -> Iterator[bytes]:
    if path.name == STAMPED:
        value = dict(json.loads(path.read_bytes().decode()))
        # raises ValueError or TypeError for a stamp that orbax could not read
        datetime.fromtimestamp((value.pop(STAMP, None) or 0) / 1e9)
        yield files_lib.to_json(value, sort_keys=True).encode()
        return
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
