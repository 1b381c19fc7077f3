"""Where downloads are kept, and files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

ENV = "HYPELORA_CACHE"


def root(cache_dir: str | os.PathLike | None = None) -> Path:
    """Cache folder: the argument, else $HYPELORA_CACHE, else ~/.cache/hypelora_jax."""
    chosen = cache_dir or os.environ.get(ENV)
    return Path(chosen) if chosen else Path.home() / ".cache" / "hypelora_jax"


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file by a rename, so that a reader finds all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
