"""What the files next to a vocabulary say: special tokens, added tokens, settings.

`tokenizer_config.json` has them all. Older folders have the tokens in
`special_tokens_map.json` and `added_tokens.json`, which count, as in transformers, only
if `tokenizer_config.json` has no `added_tokens_decoder`.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from etils import epath
from tokenizers import AddedToken

from hypelora_jax import files
from hypelora_jax.errors import UserError

FLAGS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
    "split_special_tokens",
)
# In the order in which transformers numbers tokens that a vocabulary lacks.
ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_ADDED, _EXTRA = "added_tokens_decoder", "extra_special_tokens"
_OLD_EXTRA = "additional_special_tokens"
_MARKS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_HALVES = re.compile("[\ud800-\udfff]")  # of a character; JSON can spell them
_WAY_OUT = "Copy the file from the model's source"


class TokenSettings(NamedTuple):
    """What the files say; what they leave out is not in it."""

    tokenizer_class: str  # without "Fast"; "" if no file names one
    flags: dict[str, bool | None]  # those of FLAGS
    roles: dict[str, AddedToken | None]  # special tokens; None for a role without one
    added: dict[int, AddedToken]  # added tokens by id
    complete: bool  # a tokenizer.json has no further added tokens
    extra: list[AddedToken]  # special tokens that have neither role nor id
    side: str  # "right" or "left", where long texts are cut; "" if not said


class _Fields(NamedTuple):
    """A JSON object whose fields are checked when they are read."""

    where: str
    values: Mapping[str, Any]

    def read(
        self, name: str, fits: Callable[[Any], bool], expected: str, default: Any
    ) -> Any:
        """The value of a field, or its default if the field is missing or null."""
        got = self.values.get(name)
        if got is None:
            return default
        if not fits(got):
            shown = f"{got!r:.80}"
            raise UserError(
                f"{self.where} has {name}={shown}; expected {expected}. {_WAY_OUT}"
            )
        return got

    def flag(self, name: str, default: bool | None = None) -> bool | None:
        """True or false."""
        return self.read(name, lambda x: isinstance(x, bool), "true or false", default)

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        return self.read(name, lambda x: isinstance(x, str), "a text", default)


def read(folder: epath.Path) -> TokenSettings:
    """Read the files of a folder that say how its vocabulary is used.

    Raises:
      UserError: a file is not a JSON object, or a field has a value of another kind.
    """
    fields = _fields(folder / "tokenizer_config.json")
    values = dict(fields.values)
    if not values.get(_EXTRA):
        values[_EXTRA] = values.pop(_OLD_EXTRA, None)
    older = _ADDED not in values
    if older:
        values |= _fields(folder / "special_tokens_map.json").values
    fields = fields._replace(values=values)
    roles, extra = _roles(fields), _list(fields, _EXTRA)
    if older:
        # Only these are special for transformers if they are in added_tokens.json, too:
        # not those of this model's own roles, nor those spelled with a __type.
        usual = [n for n in ROLES if "__type" not in (values.get(n) or "")]
        plain = [roles.get(n) for n in usual]
        named = {token.content for token in (*plain, *extra) if token is not None}
        added = _by_content(_fields(folder / "added_tokens.json"), named)
    else:
        added = _by_id(fields)
    sides = ("left", "right")
    return TokenSettings(
        tokenizer_class=fields.text("tokenizer_class").removesuffix("Fast"),
        flags={n: fields.flag(n) for n in FLAGS if n in values},
        roles=roles,
        added=added,
        complete=not older,
        extra=extra or _list(fields, _OLD_EXTRA),
        side=fields.read("truncation_side", sides.__contains__, "left or right", ""),
    )


def _fields(file: epath.Path) -> _Fields:
    """The fields of a file; a file that is not there has none."""
    values = files.read_json(file, _WAY_OUT) if file.exists() else {}
    return _Fields(str(file), values)


def _roles(fields: _Fields) -> dict[str, AddedToken | None]:
    """Special tokens by role: the usual roles, then those of this model alone."""
    values = fields.values
    own = [n for n in values if n.endswith("_token") and isinstance(values[n], str)]
    out = {n: _token(fields, n, values[n]) for n in (*ROLES, *own) if n in values}
    if isinstance(named := values.get(_EXTRA), dict):
        out |= {n: _token(fields, n, named[n]) for n in named}
    return out


def _list(fields: _Fields, name: str) -> list[AddedToken]:
    """The tokens in a list; those of an object have roles and are not here."""
    expected = "a list of tokens"
    got = fields.read(name, lambda x: isinstance(x, list | dict), expected, [])
    found = [_token(fields, name, x) for x in got] if isinstance(got, list) else []
    return [token for token in found if token is not None]


def _by_id(fields: _Fields) -> dict[int, AddedToken]:
    """The added tokens of tokenizer_config.json: {"5": {"content": ...}, ...}."""
    expected = 'an object of tokens by id, {"5": {"content": "<a>"}}'

    def fits(x: Any) -> bool:
        return isinstance(x, dict) and all(
            n.isdecimal() and isinstance(token, dict) for n, token in x.items()
        )

    found = fields.read(_ADDED, fits, expected, {})
    tokens = {int(n): _token(fields, _ADDED, found[n], False) for n in found}
    return {n: token for n, token in tokens.items() if token is not None}


def _by_content(fields: _Fields, special: Collection[str]) -> dict[int, AddedToken]:
    """The added tokens of added_tokens.json: {"<a>": 5, ...}."""
    out = {}
    for content in fields.values:
        index = fields.read(
            content, lambda x: type(x) is int and x >= 0, "an id of at least 0", -1
        )
        mark = content in special
        about = {"content": content, "special": mark, "normalized": not mark}
        if (token := _token(fields, content, about)) is not None:
            out[index] = token
    return out


def _token(
    fields: _Fields, name: str, value: Any, special: bool = True
) -> AddedToken | None:
    """One token as a string or an object; None for null.

    An object says itself whether spaces next to the token belong to it (`lstrip`,
    `rstrip`), whether it is only found as a word (`single_word`), and in which text:
    the given one, or the lower-cased one (`normalized`).
    """
    about = value if isinstance(value, dict) else {"content": value}
    content = about.get("content")
    marks = {n: about[n] for n in _MARKS if about.get(n) is not None}
    if value is None:
        return None
    good = isinstance(content, str) and content != "" and not _HALVES.search(content)
    if not good or not all(isinstance(x, bool) for x in marks.values()):
        raise UserError(
            f"{fields.where} has {name}={value!r:.80}; expected a token, or an object "
            f"with its content and true or false for {', '.join(_MARKS)}. {_WAY_OUT}"
        )
    return AddedToken(content, **{"special": special, **marks})
