"""Documents: nested lists and mappings of texts in YAML or JSON.

Every scalar stays the text that was written: YAML 1.1 would read `yes:` as true and
1.10 as 1.1. A plain `null`, `~` or nothing is None. The reader builds no objects, and
it refuses a document whose aliases would make it large.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import yaml
from etils import epath

from hypelora_jax import files
from hypelora_jax.data.formats.cells import shown
from hypelora_jax.errors import UserError

SUFFIXES = (".yaml", ".yml", ".json")
MAX_BYTES = 20_000_000  # of a file, and of a document with its aliases written out
_DEPTH = 20  # lists and mappings inside each other
_ENTRY = 16  # bytes that an entry counts in addition to its characters
_NULLS = ("", "~", "null", "Null", "NULL")
_TEXT_TAGS = (None, "!", "tag:yaml.org,2002:str")
# The parser in C is ten times as fast, but PyYAML can be built without it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Node = Any  # None, a text, a list of nodes, or a dict from texts to nodes


def read(file: str) -> Node:
    """Return the document in a file; its suffix says the format.

    Raises:
      UserError: there is no such file, it is larger than MAX_BYTES, or it is not one
        document of lists and mappings with each key once; the message names the file.
    """
    path = epath.Path(file)
    if not file.lower().endswith(SUFFIXES):
        raise UserError(
            f"{file} has suffix {path.suffix!r}; expected one of {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{file} {what}; expected a file. Check the path")
    if (size := path.stat().length) > MAX_BYTES:
        raise UserError(
            f"{file} has {size / 1e6:.1f} MB; expected at most {MAX_BYTES / 1e6:.0f} MB"
        )
    text = files.read_text(path)
    return _json(file, text) if file.lower().endswith(".json") else _yaml(file, text)


class _Open(NamedTuple):
    """A list or mapping whose end has not come yet, or the stream of documents."""

    start: Any  # its first event; None for the stream
    items: list[Node]  # of a mapping, keys and values in turn

    @property
    def at_key(self) -> bool:
        """Whether the next item is a key."""
        is_mapping = isinstance(self.start, yaml.MappingStartEvent)
        return is_mapping and len(self.items) % 2 == 0


def _yaml(file: str, text: str) -> Node:
    anchors: dict[str, tuple[Node, int]] = {}  # a node and its size
    stack, sizes = [_Open(None, [])], [0]
    for event in _events(file, text):
        where = f"{file}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            if len(stack) > _DEPTH:
                _refuse(where, "lists and mappings are nested too deeply")
            stack.append(_Open(event, []))
            sizes.append(_ENTRY)
            continue
        anchor = None
        if isinstance(event, yaml.ScalarEvent):
            node = _scalar(event, stack[-1].at_key)
            size, anchor = len(event.value) + _ENTRY, event.anchor
        elif isinstance(event, yaml.CollectionEndEvent):
            done, size = stack.pop(), sizes.pop()
            node, anchor = _closed(where, done), done.start.anchor
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                _refuse(where, f"no anchor ends before the alias *{event.anchor}")
            node, size = anchors[event.anchor]
        else:
            continue
        if anchor is not None:
            anchors[anchor] = node, size
        stack[-1].items.append(node)
        sizes[-1] += size
        if sizes[-1] > MAX_BYTES:
            most = f"{MAX_BYTES / 1e6:.0f} MB"
            _refuse(where, f"the entries up to here, aliases included, exceed {most}")
    return _only(file, stack[0].items)


def _events(file: str, text: str) -> Iterator[Any]:
    """Yield the events of the parser; a tag other than that of texts is refused."""
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if getattr(event, "tag", None) not in _TEXT_TAGS:
                where = f"{file}:{event.start_mark.line + 1}"
                _refuse(where, f"the tag {shown(event.tag)} is not allowed")
            yield event
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = file if mark is None else f"{file}:{mark.line + 1}"
        what = getattr(e, "problem", None) or str(e).splitlines()[0]
        _refuse(where, f"it is not YAML ({what})")


def _scalar(event: Any, is_key: bool) -> str | None:
    plain = event.implicit[0] and event.value in _NULLS
    return None if plain and not is_key else event.value


def _closed(where: str, done: _Open) -> Node:
    if isinstance(done.start, yaml.SequenceStartEvent):
        return done.items
    return _mapping(where, list(zip(done.items[::2], done.items[1::2], strict=True)))


def _mapping(where: str, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            _refuse(where, f"the key {shown(key)} is not a text")
        if key in out:
            _refuse(where, f"the key {shown(key)} occurs twice")
        out[key] = value
    return out


def _only(file: str, found: list[Node]) -> Node:
    if len(found) != 1:
        _refuse(
            file, f"it has {len(found) or 'no'} documents" if found else "it is empty"
        )
    return found[0]


def _json(file: str, text: str) -> Node:
    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return _mapping(file, pairs)

    if not text.strip():
        _refuse(file, "it is empty")
    try:
        found = json.loads(
            text,
            object_pairs_hook=mapping,
            parse_int=str,
            parse_float=str,
            parse_constant=str,
        )
    except UserError:
        raise
    except (ValueError, RecursionError) as e:
        _refuse(file, f"it is not JSON ({e})")
    return _texts(file, found, 0)


def _texts(file: str, node: Any, depth: int) -> Node:
    """Return a JSON value with true and false as texts."""
    if depth > _DEPTH:
        _refuse(file, "lists and mappings are nested too deeply")
    if isinstance(node, bool):
        return str(node).lower()
    if isinstance(node, list):
        return [_texts(file, one, depth + 1) for one in node]
    if isinstance(node, dict):
        return {key: _texts(file, one, depth + 1) for key, one in node.items()}
    return node


def _refuse(where: str, what: str) -> NoReturn:
    raise UserError(
        f"{where}: {what}; expected one document of plain texts, lists and mappings, "
        "with each key once"
    )
