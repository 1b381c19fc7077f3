"""The section of docs/conditions.md that experiments write."""

import pytest
import results_page
from etils import epath

from hypelora_jax.errors import UserError

NUMBERS = {
    "a": {
        "share": {"value": 0.5, "low": -0.25, "high": 1.25},
        "steps": 3000,
        "rows": [["one", 0.12345], ["two", {"value": 2.0, "low": 0.0, "high": 3.0}]],
    }
}


def test_numbers_fill_the_text_by_their_names():
    text = "in {a.steps} steps {a.share}\n{a.rows}\n"
    wanted = "in 3000 steps .500 [-.250, 1.25]\n| one | .123 |\n"
    wanted += "| two | 2.00 [.000, 3.00] |\n"
    assert results_page.filled(text, NUMBERS) == wanted


def test_a_number_below_1_does_not_look_like_1():
    assert [results_page.said(x) for x in (0.9994, 0.99952, -0.25, 1.0)] == [
        ".999",
        ".9995",
        "-.250",
        "1.00",
    ]


def test_a_name_without_a_number_is_an_error():
    with pytest.raises(KeyError, match="missing"):
        results_page.filled("{a.missing}", NUMBERS)


def test_the_page_is_what_the_stored_numbers_give():
    text = results_page.PAGE.read_text("utf-8")
    assert results_page.page(text) == text
    other = text.replace("170 yes/no tasks ask", "nobody asks")
    assert other != text and results_page.page(other) == text


def test_a_folder_is_for_the_flags_that_it_began_with(tmp_path):
    folder = epath.Path(tmp_path / "new")
    first = results_page.begun(folder, steps=400, overrides=[])
    assert first["steps"] == 400 and first["date"] and first["jax"]
    assert results_page.begun(folder, steps=400, overrides=[]) == first
    with pytest.raises(UserError, match="begun with steps 400, and now it is 300"):
        results_page.begun(folder, steps=300, overrides=[])
