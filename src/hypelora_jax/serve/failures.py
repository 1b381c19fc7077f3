"""Responses other than 200; the body of each is {"error": "..."} with one line."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Handler = Callable[[Request, Exception], Awaitable[Response]]
WANTED = 'expected {"text": "..."}, or a list of such objects'


class Refusal(Exception):
    """A refused request, with its HTTP `status` and a line that says why."""

    def __init__(self, status: int, line: str, retry_after: int = 0):
        super().__init__(line)
        self.status, self.retry_after = status, retry_after


def as_json(value: Any, status: int = 200) -> Response:
    """Return a value as a JSON response."""
    return Response(json.dumps(value), status, media_type="application/json")


def refusal_response(refusal: Refusal) -> Response:
    """Respond to a refused request, and close a connection with an unread body."""
    response = as_json({"error": str(refusal)}, refusal.status)
    response.headers["x-content-type-options"] = "nosniff"
    if refusal.retry_after:
        response.headers["retry-after"] = str(refusal.retry_after)
    if refusal.status in (408, 413):
        response.headers["connection"] = "close"
    return response


async def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, Refusal)
    return refusal_response(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """Refuse a body that is not JSON or not a question, without echoing the body."""
    del request
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return as_json({"error": f"the body is not JSON; {WANTED}"}, 400)
    path = [x for x in first["loc"] if x not in ("body", "one", "several")]
    where = "".join(f"[{x}]" if isinstance(x, int) else f".{x:.60}" for x in path)
    what = first["msg"][:1].lower() + first["msg"][1:]
    line = " ".join(f"body{where}: {what}; {WANTED}".split())
    return as_json({"error": line}, 422)


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    line = f"{request.method} {request.url.path[:60]}: {error.detail}; see /docs"
    return as_json({"error": line}, error.status_code)


async def _internal(request: Request, error: Exception) -> Response:
    del request, error  # the server logs it
    return as_json({"error": "the service failed; its log says why"}, 500)


HANDLERS: dict[type[Exception], Handler] = {
    Refusal: _refused,
    RequestValidationError: _invalid,
    HTTPException: _no_such_path,
    Exception: _internal,
}
