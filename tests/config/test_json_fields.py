"""The checked reader of JSON that others wrote: types, ranges, defaults, messages."""

import json

import pytest

from hypelora_jax.config.json_fields import JsonFields
from hypelora_jax.errors import UserError


def fields(text: str) -> JsonFields:
    return JsonFields("x.json", json.loads(text))


def test_values_that_fit_are_returned_as_they_are():
    read = fields(
        '{"i": 3, "n": 16, "r": 0.5, "f": false, "t": "a", "ts": ["a"], "l": 1,'
        ' "ls": [0, 2], "p": {"q|v": 2, "k": 0.5}, "o": {"in": 1}, "x": ".*[01]"}'
    )
    assert read.integer("i", 1) == 3
    got = read.number("n", 0)
    assert (got, type(got)) == (16.0, float)
    assert read.rate("r") == 0.5
    assert read.flag("f") is False
    assert read.text("t") == "a"
    assert read.texts("ts") == ("a",)
    assert read.integers("l") == (1,) and read.integers("ls") == (0, 2)
    assert read.patterns("p") == {"q|v": 2, "k": 0.5}
    assert read.object("o").integer("in") == 1
    assert read.regex("x") == ".*[01]"
    assert read.only("t", "b", "a") == "a"


@pytest.mark.parametrize("text", ["{}", '{"a": null}'])
def test_a_missing_field_and_null_give_the_default(text):
    read = fields(text)
    assert read.integer("a", 1, default=7) == 7
    assert read.number("a", default=0.5) == 0.5
    assert read.number("a", default=None) is None
    assert read.rate("a", 0.1) == 0.1
    assert read.flag("a", default=True) is True
    assert read.text("a", "") == ""
    assert read.texts("a", ()) == ()
    assert read.integers("a", None) is None
    assert read.patterns("a") == {}
    assert read.only("a", "absolute") == "absolute"
    assert read.object("a", {}).values == {}


WRONG = [
    ("integer", "0", "an integer of at least 1"),
    ("integer", "true", "an integer of at least 1"),
    ("integer", "8.0", "an integer of at least 1"),
    ("integer", '"8"', "an integer of at least 1"),
    ("integer", "NaN", "an integer of at least 1"),
    ("integer", "4294967296", "an integer of at least 1"),
    ("number", "NaN", "a finite number of at least 1"),
    ("number", "1e999", "a finite number of at least 1"),
    ("number", "9" * 400, "a finite number of at least 1"),
    ("number", "false", "a finite number of at least 1"),
    ("number", '"16"', "a finite number of at least 1"),
    ("number", "[16]", "a finite number of at least 1"),
    ("number", "0.5", "a finite number of at least 1"),
    ("rate", "1", r"a rate in \[0, 1\)"),
    ("rate", "-0.1", r"a rate in \[0, 1\)"),
    ("flag", "0", "true or false"),
    ("flag", '"false"', "true or false"),
    ("text", "3", "a text"),
    ("texts", '"a"', "a list of texts"),
    ("texts", '["a", 1]', "a list of texts"),
    ("integers", "[1, -1]", "a list of integers"),
    ("integers", "[1, true]", "a list of integers"),
    ("integers", "1.5", "a list of integers"),
    ("patterns", "[1]", r"\{\"NAME\": NUMBER\}"),
    ("patterns", '{"a": NaN}', r"\{\"NAME\": NUMBER\}"),
    ("patterns", '{"a": "8"}', r"\{\"NAME\": NUMBER\}"),
    ("object", "[]", "an object"),
    ("only", "1", "false"),
]


@pytest.mark.parametrize(("kind", "text", "expected"), WRONG)
def test_other_values_are_one_line_with_file_field_and_value(kind, text, expected):
    more = {"integer": (1,), "number": (1,), "only": (False,)}.get(kind, ())
    with pytest.raises(UserError, match=f"^x.json has a=.*; expected {expected}") as e:
        getattr(fields(f'{{"a": {text}}}'), kind)("a", *more)
    assert "\n" not in str(e.value) and len(str(e.value)) < 300


@pytest.mark.parametrize("kind", ["integer", "number", "flag", "text", "object"])
def test_a_field_without_a_default_must_be_there(kind):
    with pytest.raises(UserError, match="^x.json has no a; expected .*Use the file"):
        getattr(fields("{}"), kind)("a")
    with pytest.raises(UserError, match="^x.json has a=null; expected"):
        getattr(fields('{"a": null}'), kind)("a")


@pytest.mark.parametrize("text", ["query[", "(", "a{1" + "0" * 30 + "}"])
def test_a_broken_regex_is_named(text):
    with pytest.raises(UserError, match="^x.json: a .* is not a regular expression"):
        fields(json.dumps({"a": {text: 8}})).patterns("a")
    with pytest.raises(UserError, match="^x.json: a .* is not a regular expression"):
        fields(json.dumps({"a": text})).regex("a")


def test_a_nested_field_is_named_with_its_object():
    with pytest.raises(UserError, match="^x.json: a has b=true; expected an integer"):
        fields('{"a": {"b": true}}').object("a").integer("b")
