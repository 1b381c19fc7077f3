"""The reader of tables: what is written is read back, however the bytes arrive."""

import csv
import io
import random

import pytest

from hypelora_jax.data import formats
from hypelora_jax.data.formats import FORMATS, delimited, lines
from hypelora_jax.data.formats.sheet import Bad, Row, columns_of

ALPHABET = 'ab ",;\t|\u2028é'


def read(tmp_path, data, kind="csv"):
    path = tmp_path / f"in.{kind}"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    sheet = formats.read(str(path), FORMATS[kind])
    return sheet, list(sheet.rows((), True))


def cells_of(found):
    return [list(item.cells.values()) for item in found if isinstance(item, Row)]


def drawn(draw, n, alphabet):
    """Rows of three random cells; the first is never blank, so no row is."""
    return [
        ["x" + "".join(draw.choices(alphabet, k=draw.randint(0, 6)))]
        + ["".join(draw.choices(alphabet, k=draw.randint(0, 6))) for _ in range(2)]
        for _ in range(n)
    ]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_what_is_written_is_read_back(tmp_path, kind):
    draw = random.Random(0)
    alphabet = ALPHABET + ("\n\r" if kind == "csv" else "")
    rows = drawn(draw, 2000, alphabet)
    by = FORMATS[kind].delimiter
    text = "".join(delimited.written(row, by) for row in [["a", "b", "c"], *rows])
    sheet, found = read(tmp_path, text, kind)
    assert sheet.columns == ("a", "b", "c")
    assert cells_of(found) == rows


def test_csv_is_read_as_the_standard_library_reads_it(tmp_path):
    """Where that one reads strictly, and no space is before a quote."""
    draw, checked = random.Random(1), 0
    for _ in range(2000):
        cells = drawn(draw, 1, 'ab ",\n')[0]
        text = draw.choice([",".join(cells), ",".join(f'"{cell}"' for cell in cells)])
        if ' "' in text or '" ' in text or text.count("\n") and '"' not in text:
            continue
        try:
            (wanted,) = csv.reader(io.StringIO(text, newline=""), strict=True)
        except (csv.Error, ValueError):
            continue
        if len(wanted) == 3:
            _, found = read(tmp_path, f"a,b,c\n{text}\n")
            assert cells_of(found) == [wanted], text
            checked += 1
    assert checked > 150


def test_lines_do_not_depend_on_the_blocks_they_come_in():
    draw = random.Random(2)
    for _ in range(500):
        data = "".join(draw.choices("ab\r\n", k=60)).encode()
        cuts = sorted(draw.choices(range(61), k=draw.randint(0, 8)))
        blocks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, 60], strict=True)]
        found = list(lines._ended(iter([block for block in blocks if block])))
        assert found == data.splitlines(keepends=True)


def test_a_pause_ends_a_line_that_ends_in_a_carriage_return():
    blocks = [b"a\r", None, b"b\r", None, b"\nc"]
    found = [x for x in lines._ended(iter(blocks)) if x is not None]
    assert found == [b"a\r", b"b\r", b"c"]
    blocks = [b"a\r\nb\r", None, b"\nc\r\n"]  # the line feed is waited for
    found = list(lines._ended(iter(blocks)))
    assert found == [b"a\r\n", None, b"b\r\n", b"c\r\n"]


def test_a_quote_that_is_open_too_long_is_a_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "MAX_QUOTED", 50)
    data = 'text,n\n"open,1\n' + "a line,2\n" * 30
    _, found = read(tmp_path, data)
    assert isinstance(found[0], Bad) and found[0].line == 2
    assert len(cells_of(found)) == 30


def test_spaces_around_a_quoted_field_do_not_belong_to_it(tmp_path):
    data = 'a, b\n1, "x, y" \n "1" ,"z"\n1, "open\n1, "x" y\n 1 , z \n'
    _, found = read(tmp_path, data)
    assert cells_of(found) == [
        ["1", "x, y"],
        ["1", "z"],
        ["1", ' "open'],
        ["1", ' "x" y'],
        [" 1 ", " z "],
    ]


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("text,label", ","),
        ("text;label", ";"),
        ('"a;b",label', ","),
        ('"a,b";label', ";"),
        ("text\tlabel", "\t"),
        ("text|label", "|"),
        ("text;label,other", ","),
        ("text", ","),
    ],
)
def test_the_delimiter_of_a_csv_header(header, delimiter):
    assert delimited._delimiter(header) == delimiter


def test_names_of_columns_are_unique():
    header = ["a", "", "a", "a_3", "", "column_2"]
    names, repeated = columns_of("x.csv", header)
    assert len(set(names)) == 6 and repeated == {"a"}
    assert names[0] == "a" and names[3] == "a_3" and names[5] == "column_2"
