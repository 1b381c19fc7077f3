"""Where downloads are kept, and files that are written whole or not at all."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from etils import epath

ENV = "HYPELORA_CACHE"


def root(cache_dir: str | os.PathLike | None = None) -> Path:
    """Cache folder: the argument, else $HYPELORA_CACHE, else ~/.cache/hypelora_jax."""
    chosen = cache_dir or os.environ.get(ENV) or "~/.cache/hypelora_jax"
    return Path(chosen).expanduser()


def write_whole(path: epath.PathLike, data: bytes | str) -> None:
    """Write a file by a rename, so that a reader finds all of it or none.

    Folders are made; the path may be gs://...
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


def write_json(path: epath.PathLike, value: Any) -> None:
    """A JSON file that appears whole or not at all."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def keep_compiled() -> None:
    """Keep compiled programs in the cache folder, so that a restart need not compile.

    JAX_COMPILATION_CACHE_DIR, if set, rules.
    """
    import jax  # here: everything else in this file is of use without it

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(root() / "xla"))
