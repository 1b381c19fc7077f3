"""The OpenAPI description as an HTML page without scripts or external links."""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from hypelora_jax import files
from hypelora_jax.serve.pages.page import STYLE


def html(openapi: dict[str, Any]) -> str:
    """Return the page of an OpenAPI 3.1 document."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(openapi['info']['title'])}</title><style>{STYLE}</style>"
        f"<main>{''.join(_parts(openapi))}</main></html>"
    )


def _parts(openapi: dict[str, Any]) -> Iterator[str]:
    info = openapi["info"]
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    yield f"<p>{_prose(info['description'])} For programs: "
    yield '<a href="openapi.json">openapi.json</a>. <a href=".">Ask</a></p>'
    for path, methods in openapi["paths"].items():
        for method, about in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{_prose(about.get('summary', ''))}</p>"
            for text in about.get("description", "").split("\n\n"):
                yield f"<p>{_prose(text)}</p>" if text else ""
    yield "<h2>Objects</h2>"
    schemas = openapi.get("components", {}).get("schemas", {})
    for name, schema in schemas.items():
        yield from _schema(name, schema)


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"<h3>{escape(name)}</h3><p>{_prose(schema.get('description', ''))}</p>"
    yield "<table>"
    for field, about in schema.get("properties", {}).items():
        kind = escape(_kind(about))
        said = _prose(about.get("description", ""))
        yield f"<tr><td><code>{escape(field)}</code><td>{kind}<td>{said}"
    yield "</table>"
    for example in schema.get("examples", ()):
        yield f"<pre>{escape(files.to_json(example))}</pre>"


def _prose(text: str) -> str:
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))


def _kind(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        return " or ".join(map(_kind, about["anyOf"]))
    if about.get("type") == "array":
        return f"list of {_kind(about['items'])}"
    return about.get("type", about.get("$ref", "").rsplit("/", 1)[-1])
