"""Conditioning vectors that come with the data, in files and in batches.

A cell of a table is a vector or the id of a vector in a file. A vector is a list of
numbers (C,), or a list of such lists (S, C). All vectors of a corpus have one shape.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from hypelora_jax.config.adapter_sections import ConditionConfig
from hypelora_jax.data import npz
from hypelora_jax.data.tables import Splits, Table
from hypelora_jax.errors import UserError

WANTED = "a list of finite numbers"


class Given(NamedTuple):
    """The vectors of N examples: K vectors, (K, C) or (K, S, C) float32.

    `row`, int32 (N,), is the index of each example's vector. If it is None, example n
    has the n-th vector.
    """

    vectors: np.ndarray
    row: np.ndarray | None = None


class Vectors:
    """Turns cells into vectors of one shape.

    Args:
      config: its `width`, if set, is the width that each vector must have; its `file`,
        if set, has the vectors that cells name by id.
      shape: the shape of all vectors, if known; () takes the shape of the first one.

    Raises:
      UserError: as `read`, or the vectors of the file have another width or shape.
    """

    def __init__(self, config: ConditionConfig, shape: tuple[int, ...] = ()):
        self._width, self._file, self.shape = config.width, config.file, shape
        self._by_id = read(config.file) if config.file else {}
        for vector in list(self._by_id.values())[:1]:  # all of a file have one shape
            if what := self._shape_fault(vector):
                raise UserError(f"{config.file}: {what}")
            self.shape = vector.shape

    def fault(self, cell: Any) -> str:
        """Return the reason why a cell is not a vector, or "" if it is one."""
        if cell is None or (isinstance(cell, str) and not cell):
            return f"the condition is missing; expected {self._wanted()}"
        if isinstance(cell, str | int | np.integer) and not isinstance(cell, bool):
            return "" if str(cell) in self._by_id else self._unknown(str(cell))
        try:
            numbers = np.asarray(cell)
        except ValueError:  # lists of unequal lengths
            numbers = np.asarray("")
        if numbers.dtype.kind not in "iuf" or not numbers.size:
            return f"the condition is {str(cell)[:40]}; expected {self._wanted()}"
        vector = _float32(numbers)
        if not np.isfinite(vector).all():
            return (
                "the condition has a number that is not finite; expected finite numbers"
            )
        return self._shape_fault(vector)

    def vector(self, cell: Any) -> np.ndarray:
        """Return the vector of a valid cell; the first one sets the shape."""
        if isinstance(cell, str | int | np.integer):
            cell = self._by_id[str(cell)]
        vector = np.asarray(cell, np.float32)
        self.shape = vector.shape
        return vector

    def _shape_fault(self, vector: np.ndarray) -> str:
        if vector.ndim not in (1, 2):
            return f"the condition has shape {vector.shape}; expected {self._wanted()}"
        if self._width and vector.shape[-1] != self._width:
            return (
                f"the condition has {vector.shape[-1]} numbers; expected "
                f"{self._width} (config.condition.width)"
            )
        if self.shape and vector.shape != self.shape:
            return f"the condition has shape {vector.shape}; expected {self.shape}"
        return ""

    def _unknown(self, cell: str) -> str:
        if self._file:
            return f"the condition is {cell[:40]!r}; expected an id of {self._file}"
        if cell.startswith("["):
            return (
                f"the condition is the text {cell[:40]!r}; expected a list, which "
                "JSON lines and Parquet can hold, or an id of condition.file"
            )
        return (
            f"the condition is {cell[:40]!r}; expected {WANTED}, or an id of a file "
            "that condition.file names"
        )

    def _wanted(self) -> str:
        size = f" of shape {self.shape}" if self.shape else ""
        return WANTED + size + (f", or an id of {self._file}" if self._file else "")


def _float32(x: np.ndarray) -> np.ndarray:
    """Return numbers as float32; those out of its range become infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def read(file: str) -> dict[str, np.ndarray]:
    """Read vectors by id from an .npz: `ids` (K,), `vectors` (K, C) or (K, S, C).

    Raises:
      UserError: the file does not exist, an array is missing, the arrays do not fit
        together, a number is not finite, or an id occurs twice.
    """
    wanted = "expected an .npz file with ids (K,) and vectors (K, C) or (K, S, C)"
    ids, vectors = _arrays(file, wanted)
    if ids.ndim != 1 or vectors.ndim not in (2, 3) or len(ids) != len(vectors):
        shapes = f"ids {ids.shape} and vectors {vectors.shape}"
        raise UserError(f"{file} has {shapes}; {wanted}")
    if vectors.dtype.kind not in "iuf" or not vectors.size:
        kind = f"vectors of {vectors.dtype}, {vectors.size} numbers in all"
        raise UserError(f"{file} has {kind}; expected one vector of numbers or more")
    names, vectors = [str(one) for one in ids], _float32(vectors)
    finite = np.isfinite(vectors.reshape(len(vectors), -1)).all(axis=1)
    if not finite.all():
        bad = int(np.argmin(finite))
        raise UserError(
            f"{file}: row {bad} (id {names[bad]}) has a number that is not finite; "
            "expected finite numbers"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file} has the id {twice!r} twice; expected each id once")
    return dict(zip(names, vectors, strict=True))


def _arrays(file: str, wanted: str) -> tuple[np.ndarray, np.ndarray]:
    """Return `ids` and `vectors` of an .npz, which may hold no Python objects."""
    if not epath.Path(file).exists():
        raise UserError(f"{file} does not exist; {wanted}")
    arrays = npz.read(file)
    if missing := {"ids", "vectors"} - arrays.keys():
        have, lacks = ", ".join(arrays) or "none", " and ".join(sorted(missing))
        raise UserError(f"{file} has the arrays {have} but not {lacks}; {wanted}")
    return arrays["ids"], arrays["vectors"]


def by_example_id(splits: Splits, vectors: Vectors, config: ConditionConfig) -> Splits:
    """Give each example the vector that config.condition.file has for its id.

    Raises:
      UserError: an id is in two splits, or it is not in the file.
    """
    seen: dict[int, str] = {}
    for name, table in splits.items():
        for one in table.ids.tolist():
            if one in seen:
                raise UserError(
                    "config.condition.file is looked up by the ids of examples, but "
                    f"{name} and {seen[one]} both have the id {one}; name a column of "
                    "ids with config.data.condition=COLUMN"
                )
            seen[one] = name
    out = Splits()
    for name, table in splits.items():
        for one in table.ids.tolist():
            if vectors.fault(one):
                raise UserError(
                    f"{config.file} has no vector for the id {one}, an example of "
                    f"{name}; expected a vector for every example, or a column of ids "
                    "named with config.data.condition=COLUMN"
                )
        rows = [vectors.vector(one) for one in table.ids.tolist()]
        out[name] = table._replace(condition=np.stack(rows))
    return out


def width_of(table: Table) -> int:
    """Return the width C of a table's vectors, or 0 if it has none."""
    return 0 if table.condition is None else table.condition.shape[-1]


def distinct(condition: np.ndarray | None) -> Given | None:
    """Return the distinct vectors of N examples, in the order of first occurrence."""
    if condition is None:
        return None
    found: dict[bytes, int] = {}
    row = [found.setdefault(x.tobytes(), len(found)) for x in condition]
    first = np.unique(row, return_index=True)[1]
    return Given(condition[first], np.asarray(row, np.int32))


def take(given: Given | None, rows: np.ndarray) -> Given | None:
    """Return the vectors of some examples, in the given order."""
    if given is None or given.row is None:
        return None if given is None else Given(given.vectors[rows])
    return Given(given.vectors, given.row[rows])


def of_batch(given: Given, rows: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
    """Return a batch's `condition` and, if rows share vectors, its `row`.

    If there are at most as many distinct vectors as rows in a batch, every batch has
    all of them. Its shape is then always the same, and so is the compiled program.
    """
    vectors, row = given
    if row is None:
        return {"condition": vectors[rows]}
    if len(vectors) == 1:
        return {"condition": vectors}
    if len(vectors) <= batch_size:
        return {"condition": vectors, "row": row[rows]}
    return {"condition": vectors[row[rows]]}


def moments(given: Given) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (C,) over examples (and slots), in float64.

    An entry that is constant up to float32 rounding gets the deviation 1.
    """
    row = np.arange(len(given.vectors)) if given.row is None else given.row
    count_K = np.bincount(row, minlength=len(given.vectors)).astype(np.float64)
    x = given.vectors.astype(np.float64)
    x_KSC = x[:, None] if x.ndim == 2 else x
    share_K11 = (count_K / (count_K.sum() * x_KSC.shape[1]))[:, None, None]
    mean_C = np.sum(share_K11 * x_KSC, axis=(0, 1))
    variance_C = np.sum(share_K11 * (x_KSC - mean_C[None, None]) ** 2, axis=(0, 1))
    std_C = np.sqrt(variance_C)
    return mean_C, np.where(std_C > 1e-6 * np.abs(mean_C), std_C, 1)


def about(given: Given) -> dict[str, Any]:
    """Return what config.json says about the vectors of train."""
    digest = hashlib.sha256(np.ascontiguousarray(given.vectors).tobytes())
    if given.row is not None:
        digest.update(np.ascontiguousarray(given.row).tobytes())
    return {
        "shape": list(given.vectors.shape[1:]),
        "distinct": len(given.vectors),
        "sha256": digest.hexdigest(),
    }


def file_sha256(file: str) -> str:
    """Return the SHA-256 of a file of vectors, or "" if it does not exist."""
    path = epath.Path(file)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
