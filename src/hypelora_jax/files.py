"""Files and folders: paths, the cache, downloads, atomic writes, UTF-8 and JSON."""

import contextlib
import errno
import fnmatch
import json
import math
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from hypelora_jax.errors import UserError

if TYPE_CHECKING:
    from etils.epath import Path as _Native
else:  # the class of paths here; the name above is that of an interface
    _Native = type(epath.Path())

ENV = "HYPELORA_CACHE"
PATH = "a path, or gs://..."  # what flags and fields that are paths take
MODEL = "a folder, gs://..., or the name of a model"  # what those of base models take
_offline = False  # of this process, for all its threads; see `offline`


def root() -> Path:
    """Return the cache folder: $HYPELORA_CACHE, or ~/.cache/hypelora_jax if unset.

    Raises:
      UserError: the variable is not a local path.
    """
    given, expected = os.environ.get(ENV) or "~/.cache/hypelora_jax", "a local path"
    if given.startswith("gs://"):
        raise UserError(f"{ENV} is the address {given!r}; expected {expected}")
    return Path(user_path(given, ENV, expected))


@contextlib.contextmanager
def offline(on: bool = True) -> Iterator[None]:
    """Forbid every download of this process while the context is open, if `on`."""
    global _offline
    before, _offline = _offline, _offline or on
    try:
        yield
    finally:
        _offline = before


def why_no_download() -> str:
    """Return why nothing may be downloaded now and the way out, or "" if it may."""
    import jax  # local, because all else in this file works without JAX

    if _offline:
        return (
            "--offline forbids the download: run `hypelora prepare` with this config "
            "first, or leave --offline out"
        )
    # Several processes would fetch the same files while the others wait for it.
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


def user_path(given: epath.PathLike, name: str, expected: str = PATH) -> str:
    """Return the path that a user wrote, checked and with `~` expanded.

    Every flag, config field and argument that is a path goes through this function. A
    relative path stays relative.

    Args:
      given: the path as it was written, a local one or gs://....
      name: the flag or field, such as "--workdir" or "config.data.train".
      expected: what the flag or field takes, for messages.

    Raises:
      UserError: it is empty, too long for the file system, not UTF-8, with a NUL, an
        address other than gs://..., or in the home folder of an unknown user.
    """
    if not isinstance(given, str | os.PathLike):
        raise UserError(f"{name} is {given!r}; expected {expected}")
    text = os.fspath(given)
    if not text:
        raise UserError(f"{name} is empty (an unset variable?); expected {expected}")
    remote = text.startswith("gs://")
    if "://" in text and not remote:
        raise UserError(f"{name} is the address {text!r}; expected {expected}")
    found = os.path.expanduser(text)
    if found.startswith("~"):
        raise UserError(
            f"{name} is {text!r}, the home folder of a user that does not exist; "
            f"expected ~/..., or ./{text} for a folder of that name"
        )
    try:
        found.encode()  # records and reports have to write it
        os.lstat(found)
    except ValueError:
        raise UserError(
            f"{name} is {text!r}; expected {expected}, in UTF-8 and without NUL"
        ) from None
    except OSError as e:
        if e.errno == errno.ENAMETOOLONG and not remote:
            raise UserError(
                f"{name} is {text[:40]!r}... and {len(text)} characters long, too long "
                "for a path here; expected a shorter one"
            ) from None
    return found


def absolute(path: epath.PathLike, name: str = "path") -> epath.Path:
    """Return the absolute path, with `~` expanded; gs://... stays as it is.

    Raises:
      UserError: `user_path` refuses it; `name` is the flag or field.
    """
    text = user_path(path, name)
    return LiteralPath(text if "://" in text else Path(text).absolute())


class LiteralPath(_Native):
    """A path whose `glob` takes its own name literally and only `pattern` as a pattern.

    In epath, `*`, `?` and `[` in the name of a folder are a part of the pattern. Orbax
    calls `glob` on the paths it is given, so it would find no files, or those of other
    runs, in a folder with such a name.
    """

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """Yield the paths below the folder that match; `*` does not match a "/"."""
        first, _, rest = pattern.partition("/")
        for name in (path.name for path in listed(self)):
            if fnmatch.fnmatchcase(name, first):
                yield from (self / name).glob(rest) if rest else [self / name]


def listed(folder: epath.Path, start: str = "", end: str = "") -> list[epath.Path]:
    """Return the paths in a folder, sorted by name, without hidden ones.

    Args:
      folder: need not exist, and then has no paths.
      start: how the names begin.
      end: how they end.
    """
    found = folder.iterdir() if folder.is_dir() else ()
    named = [p for p in found if p.name.startswith(start) and p.name.endswith(end)]
    shown = (path for path in named if not path.name.startswith("."))
    return sorted(shown, key=lambda path: path.name)


def write_whole(path: epath.PathLike, data: bytes | str) -> None:
    """Write a file, and its folders; it appears whole. The path may be gs://..."""
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

    A program's key is its code, so runs in other folders find it too. Small programs
    are kept as well, because a run has many. JAX's own variables have precedence.
    """
    import jax  # local, as above

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(root() / "xla"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
