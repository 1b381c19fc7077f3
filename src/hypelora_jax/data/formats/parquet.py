"""Rows of Parquet: the columns that are asked for, converted cell by cell."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import logging
from etils import epath

from hypelora_jax.data.formats.sheet import Bad, Items, Row, Sheet, columns_of
from hypelora_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow

ROWS = 1024  # rows in memory at once


class _Fault(NamedTuple):
    """A cell that Python cannot represent, and why."""

    what: str


def read(path: str) -> Sheet:
    """Return the sheet of a Parquet file.

    Dates and times are read as texts. A cell that cannot be read makes its row a bad
    one, if its column was asked for; otherwise it is left empty, and one warning says
    so.

    Raises:
      UserError: it is not a Parquet file.
    """
    # The import is local because it is slow and few runs need it.
    import pyarrow
    import pyarrow.parquet

    try:
        with epath.Path(path).open("rb") as file:
            header = pyarrow.parquet.read_schema(file).names
    except (pyarrow.ArrowException, OSError, UnicodeError) as e:
        raise UserError(
            f"{path} is not a Parquet file ({_short(e)}); expected Parquet"
        ) from None
    columns, repeated = columns_of(path, header)

    def rows(wanted: Sequence[str], others: bool) -> Items:
        # By name only unique columns can be chosen, so repeated ones read all.
        some = None if others or set(wanted) & repeated else list(wanted)
        names = columns if some is None else some
        try:
            with epath.Path(path).open("rb") as file:
                table = pyarrow.parquet.ParquetFile(file)
                batches = table.iter_batches(ROWS, columns=some)
                total = table.metadata.num_rows
                yield from _rows(path, batches, names, wanted, total)
        except (pyarrow.ArrowException, OSError, UnicodeError) as e:
            raise UserError(
                f"{path} cannot be read ({_short(e)}); expected a whole Parquet file"
            ) from None

    return Sheet(path, columns, rows, repeated)


def _rows(
    path: str,
    batches: Iterator["pyarrow.RecordBatch"],
    names: Sequence[str],
    wanted: Sequence[str],
    total: int,
) -> Items:
    size, n, warned = epath.Path(path).stat().length, 0, set[str]()
    for batch in batches:
        if len(names) == len(set(batch.schema.names)):
            columns = {name: _cells(batch.column(name)) for name in names}
        else:  # some names are repeated, so the columns are told apart by their place
            every = range(batch.num_columns)
            columns = dict(
                zip(names, (_cells(batch.column(i)) for i in every), strict=True)
            )
        for i in range(batch.num_rows):
            n += 1
            cells = {name: column[i] for name, column in columns.items()}
            read = size * n // max(total, 1)
            faults = {k: x for k, x in cells.items() if isinstance(x, _Fault)}
            if bad := next((name for name in wanted if name in faults), ""):
                yield Bad(n, f"column {bad!r} {faults[bad].what}", read)
                continue
            for name in faults.keys() - warned:
                warned.add(name)
                logging.warning(
                    "%s:%d: column %r %s; such cells are left empty",
                    path,
                    n,
                    name,
                    faults[name].what,
                )
            yield Row(n, cells | dict.fromkeys(faults), read)


def _cells(column: "pyarrow.Array") -> list[Any]:
    """Return the cells of a column as Python values, or faults."""
    import pyarrow

    errors = (ValueError, OverflowError, pyarrow.ArrowException)
    if pyarrow.types.is_temporal(column.type):
        try:
            return column.cast(pyarrow.string()).to_pylist()
        except errors:
            pass
    try:
        return column.to_pylist()
    except errors:
        return [_cell(cell, errors) for cell in column]


def _cell(cell: "pyarrow.Scalar", errors: tuple[type[Exception], ...]) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as e:
        return _Fault(f"has byte 0x{e.object[e.start]:02x}, which is not UTF-8")
    except errors as e:
        return _Fault(f"has a value that cannot be read ({_short(e)})")


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
