"""Files and folders: the cache folder, downloads, atomic writes, UTF-8 and JSON."""

import contextlib
import json
import math
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from hypelora_jax.errors import UserError

ENV = "HYPELORA_CACHE"
_offline = False  # of this process, for all its threads; see `offline`


def root() -> Path:
    """Return the cache folder: $HYPELORA_CACHE, or ~/.cache/hypelora_jax if unset."""
    return Path(os.environ.get(ENV) or "~/.cache/hypelora_jax").expanduser()


@contextlib.contextmanager
def offline(on: bool = True) -> Iterator[None]:
    """Forbid every download of this process while the context is open, if `on` is set.

    The flag `--offline` of the commands opens this context.
    """
    global _offline
    before, _offline = _offline, _offline or on
    try:
        yield
    finally:
        _offline = before


def why_no_download() -> str:
    """Return why nothing may be downloaded now and the way out, or "" if it may.

    Several processes may not, because each would fetch the same files while the others
    wait for it.
    """
    import jax  # local, because all else in this file works without JAX

    if _offline:
        return (
            "--offline forbids the download: run `hypelora prepare` with this config "
            "first, or leave --offline out"
        )
    # `is_initialized` first, because `process_count` alone would start the devices
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        return (
            "several processes download nothing: run `hypelora prepare` with this "
            "config first, on each host"
        )
    return ""


def check_download(missing: str) -> None:
    """Check that a download may start; `missing` says what is not here, and where.

    Raises:
      UserError: it may not.
    """
    if why := why_no_download():
        raise UserError(f"{missing}; {why}")


def absolute(path: epath.PathLike) -> epath.Path:
    """Return the absolute path, with `~` expanded; gs://... stays as it is."""
    if "://" in os.fspath(path):
        return epath.Path(path)
    return epath.Path(Path(path).expanduser().absolute())


def write_whole(path: epath.PathLike, data: bytes | str) -> None:
    """Write a file and rename it into place, so that no reader sees only a part of it.

    Missing folders are created. The path may be gs://...
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.write_bytes(data if isinstance(data, bytes) else data.encode())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def to_json(value: Any, **layout: Any) -> str:
    """Return a value as JSON text; no other function of this package writes JSON.

    `layout` goes to `json.dumps`: indent, sort_keys, ensure_ascii.

    Raises:
      UserError: a number is NaN or infinite, which JSON cannot spell; the message says
        where it is. Or the value is nested too deeply.
    """
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        if (found := next(_not_finite(value), None)) is None:
            raise  # a value that contains itself
        raise UserError(f"{found}; expected a finite number") from None
    except RecursionError:
        raise UserError("a value is nested too deeply; expected it flatter") from None


def _not_finite(value: Any, place: str = "") -> Iterator[str]:
    """Yield the numbers that JSON cannot spell, as "metrics.nll is nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place or 'the value'} is {value:f}"
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _not_finite(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _not_finite(inner, f"{place}[{i}]")


def write_json(path: epath.PathLike, value: Any) -> None:
    """Write a JSON file; it appears whole or not at all.

    Raises:
      UserError: as `to_json`; the message names the file.
    """
    try:
        text = to_json(value, indent=1)
    except UserError as e:
        raise UserError(f"{path} cannot be written: {e}") from None
    write_whole(path, text + "\n")


def read_text(path: epath.PathLike, way_out: str = "save the file as UTF-8") -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
      UserError: a byte is not UTF-8; the message names its line and says `way_out`.
    """
    data = epath.Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise UserError(
            f"{path}: byte 0x{data[e.start]:02x} in line {line} is not UTF-8; {way_out}"
        ) from None


def read_json(
    path: epath.PathLike, way_out: str = "restore the file"
) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
      UserError: the file is not UTF-8, not JSON, or JSON but not an object.
    """
    try:
        value = json.loads(epath.Path(path).read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise UserError(
            f"{path} cannot be read ({str(e).splitlines()[0]}); expected a JSON "
            f"object; {way_out}"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; {way_out}")
    return value


def check_empty(
    path: epath.PathLike, flag: str, given: str = "", but: Collection[str] = ()
) -> None:
    """Check that a folder to write to is empty or does not exist.

    Args:
      path: the folder, which need not exist.
      flag: the flag that named it, such as "--output".
      given: the folder as the user wrote it; if "", messages show the path.
      but: names of files that the folder may contain.

    Raises:
      UserError: the path is a file, or a folder with other files in it.
    """
    folder, given = epath.Path(path), given or os.fspath(path)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{given} is a file; expected a folder that does not exist yet")
    if any(file.name not in but for file in folder.iterdir()):
        raise UserError(
            f"{given} is not empty, and nothing in it is overwritten; choose another "
            f"{flag}, or empty it yourself"
        )


def keep_compiled() -> None:
    """Keep compiled programs in the cache folder, so that a restart need not compile.

    If JAX_COMPILATION_CACHE_DIR is set, that folder is used instead.
    """
    import jax  # local, as above

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(root() / "xla"))
