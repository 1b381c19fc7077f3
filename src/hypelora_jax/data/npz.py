"""Files of named arrays, `.npz`, without pickles."""

import io

import numpy as np
from etils import epath

from hypelora_jax import files
from hypelora_jax.errors import UserError


def read(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Read the arrays of an `.npz` file by name; nothing is unpickled.

    Raises:
      UserError: the file is not an `.npz`, is damaged, or has pickled objects in it.
    """
    path = epath.Path(path)
    data = path.read_bytes()
    if not data.startswith(b"PK"):  # np.load would take anything else for a pickle
        raise UserError(
            f"{path} is not an .npz file; expected a file that np.savez writes"
        )
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        arrays = {name: loaded[name] for name in loaded.files}
    except Exception as e:  # damaged bytes make NumPy and zipfile raise anything
        if "pickle" in str(e):
            raise UserError(
                f"{path} contains pickled objects, which are never loaded; expected "
                "arrays of numbers. Save them with np.savez and without dtype=object"
            ) from None
        raise UserError(
            f"{path} is not a readable .npz file ({e}); write it again"
        ) from None
    for name, x in arrays.items():
        if not isinstance(x, np.ndarray):  # NumPy returns the bytes of other members
            raise UserError(
                f"{path} has {name!r}, which is not an array; expected a file that "
                "np.savez writes. Write it again"
            )
    return arrays


def write(path: epath.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name, compressed; the file appears whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # names, not flags
    files.write_whole(path, buffer.getvalue())
