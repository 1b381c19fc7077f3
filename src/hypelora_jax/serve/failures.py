"""Responses other than 200; the body of each is {"error": "..."} with one line."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from absl import logging
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from hypelora_jax import files
from hypelora_jax.train.divergence import NotFinite

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Handler = Callable[[Request, Exception], Awaitable[Response]]


def wanted(path: str) -> str:
    """Return what the body of a request to this path should have been."""
    if path.startswith("/v1/"):
        return 'expected {"lora_name": "..."}'
    return 'expected {"text": "..."}, or a list of such objects'


class Refusal(HTTPException):
    """A refused request, with its HTTP status and a line that says why.

    It is an HTTPException because FastAPI lets no other one pass that is raised while
    it reads a body.
    """

    def __init__(self, status: int, line: str, retry_after: int = 0):
        headers = {"retry-after": str(retry_after)} if retry_after else None
        super().__init__(status, line, headers)


def as_json(value: Any, status: int = 200) -> Response:
    """Return a value as a JSON response."""
    return Response(files.to_json(value), status, media_type="application/json")


def refusal_response(refusal: Refusal) -> Response:
    """Respond to a refused request, and close a connection with an unread body."""
    response = as_json({"error": refusal.detail}, refusal.status_code)
    response.headers["x-content-type-options"] = "nosniff"
    response.headers.update(refusal.headers or {})
    if refusal.status_code in (408, 413):
        response.headers["connection"] = "close"
    return response


async def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Refusal)
    return refusal_response(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """Refuse a body that is not what it should be, without echoing the body."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = [x for x in first["loc"] if x not in ("body", "one", "several")]
    where = "".join(f"[{x}]" if isinstance(x, int) else f".{x:.60}" for x in path)
    what = first["msg"][:1].lower() + first["msg"][1:]
    line = " ".join(f"body{where}: {what}; {wanted(request.url.path)}".split())
    return as_json({"error": line}, 422)


async def _no_such_path(request: Request, error: Exception) -> Response:
    """Refuse a path or a method; a 405 names the methods, of which HEAD is one."""
    assert isinstance(error, HTTPException)
    line = f"{request.method} {request.url.path[:60]}: {error.detail}; see /docs"
    response = as_json({"error": line}, error.status_code)
    response.headers.update(error.headers or {})
    allowed = response.headers.get("allow", "").split(", ")
    if "GET" in allowed and "HEAD" not in allowed:
        response.headers["allow"] = ", ".join([*allowed, "HEAD"])
    return response


async def _not_finite(request: Request, error: Exception) -> Response:
    del request
    logging.error("%s", error)
    line = "the model's outputs for a text are NaN or infinite, so it has no answer"
    return as_json({"error": line}, 500)


async def _internal(request: Request, error: Exception) -> Response:
    del request, error  # the server logs it
    return as_json({"error": "the service failed; its log says why"}, 500)


HANDLERS: dict[type[Exception], Handler] = {
    Refusal: _refused,
    RequestValidationError: _invalid,
    HTTPException: _no_such_path,
    NotFinite: _not_finite,
    Exception: _internal,
}
