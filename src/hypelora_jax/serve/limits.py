"""Limits on hosts, rates and bodies of requests, and the count of requests.

The limits are a plain ASGI application around the service, so that a refused request is
never parsed.
"""

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from hypelora_jax.serve.failures import (
    App,
    Message,
    Receive,
    Refusal,
    Send,
    refusal_response,
)
from hypelora_jax.serve.meters import Meters

PATHS = (
    *("/", "/predict", "/adapters", "/healthz", "/metrics", "/docs", "/openapi.json"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CLIENTS = 10_000  # addresses whose rate is kept; the least recent is forgotten first
LINGER = 2.0  # seconds to read the rest of a body that is too large


class Limits(NamedTuple):
    """Bounds on the requests that are answered."""

    max_body: int = 1 << 20  # bytes
    max_texts: int = 256  # in a request
    max_chars: int = 10_000  # in a text
    rate: float = 1000.0  # POST requests per second from one address; 0: off
    patience: float = 10.0  # seconds for a body to arrive


def limited(app: App, limits: Limits, meters: Meters, hosts: tuple[str, ...]) -> App:
    """Wrap the application in its limits; `hosts` are the allowed names, () is any."""
    spend = _rates(limits.rate)

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a lifespan event
            await app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        is_head = scope["method"] == "HEAD"
        scope = {**_origin_form(scope), "method": "GET" if is_head else scope["method"]}

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if is_head and "body" in message:  # HEAD is GET without the body
                message = {**message, "body": b""}
            await send(message)

        try:
            _check_host(scope, hosts)
            if scope["method"] == "POST":
                spend((scope.get("client") or ("",))[0])
                _check_type(scope)
                _check_encoding(scope)
                receive = await _body(scope, receive, limits)
            await app(scope, receive, counted)
        except Refusal as refusal:
            await refusal_response(refusal)(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            meters.saw_request(path, status, time.perf_counter() - start)

    return checked


def _header(scope: Message, name: bytes) -> str:
    """Return a header, joined if it is there more than once, or "" without it."""
    found = [value for key, value in scope["headers"] if key == name]
    return b", ".join(found).decode("latin-1")


def _origin_form(scope: Message) -> Message:
    """Return the scope with a path as target; it may be a whole URL (RFC 9112, 3.2.2).

    The host of such a URL takes the place of the header.
    """
    match = re.fullmatch(r"https?://([^/]*)(.*)", scope["path"], re.I | re.S)
    if match is None:
        return scope
    host, path = match[1], match[2] or "/"
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    named = (b"host", host.encode("utf-8", "replace"))
    return {**scope, "path": path, "raw_path": None, "headers": [named, *others]}


def _check_host(scope: Message, hosts: tuple[str, ...]) -> None:
    """Refuse other host names: a web page may let its own name resolve to this host.

    A browser always sends a host, so a client of HTTP/1.0 that sends none is no page.
    """
    if not any(name == b"host" for name, _ in scope["headers"]):
        return
    given = _header(scope, b"host").lower()
    name = given.rsplit(":", 1)[0] if not given.endswith("]") else given
    if hosts and name.strip("[]") not in hosts:
        raise Refusal(400, f"this service is not {given[:60]!r}; expected {hosts[0]}")


def _check_type(scope: Message) -> None:
    """Refuse content types that other sites can send without a preflight request."""
    given = _header(scope, b"content-type")
    if given.split(";")[0].strip().lower() != "application/json":
        kind = given[:60] or "none"
        raise Refusal(415, f"content-type is {kind}; expected application/json")


def _check_encoding(scope: Message) -> None:
    """Refuse compressed bodies, whose true size is known only after decompression."""
    given = _header(scope, b"content-encoding").strip().lower()
    if given not in ("", "identity"):
        raise Refusal(
            415, f"content-encoding is {given[:60]}; expected a body as it is"
        )


def _rates(rate: float) -> Callable[[str], None]:
    """Return a function that takes one token of an address, or refuses the request.

    Each address has a bucket, which gains `rate` tokens a second and has room for the
    tokens of one second, at least 1.
    """
    buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(client: str) -> None:
        if not rate:
            return
        now = time.monotonic()
        tokens, since = buckets.pop(client, (max(rate, 1.0), now))
        tokens = min(max(rate, 1.0), tokens + rate * (now - since))
        buckets[client] = (tokens - (tokens >= 1), now)
        if len(buckets) > CLIENTS:
            buckets.popitem(last=False)
        if tokens < 1:
            wait = int((1 - tokens) / rate) + 1
            raise Refusal(
                429,
                f"more than {rate:g} requests a second came from this address; wait",
                wait,
            )

    return spend


async def _body(scope: Message, receive: Receive, limits: Limits) -> Receive:
    """Read the whole body, and return a `receive` that gives it in one message."""
    most = limits.max_body
    # The server has checked that this header is a number.
    claimed = int(_header(scope, b"content-length") or 0)
    if claimed > most:
        await _drain(receive, 8 * most if claimed <= 8 * most else 0)
        raise _too_large(most)
    try:
        async with asyncio.timeout(limits.patience):
            body = await _read(receive, most)
    except TimeoutError as e:
        raise Refusal(
            408,
            f"the whole body did not arrive within {limits.patience:g} s; send it "
            "again",
        ) from e
    messages: list[Message] = [
        {"type": "http.request", "body": body, "more_body": False}
    ]

    async def again() -> Message:
        if messages:
            return messages.pop()
        return await receive()  # waits until the client leaves

    return again


async def _read(receive: Receive, most: int) -> bytes:
    """Read the body piece by piece, and refuse it as soon as it is too large."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refusal(400, "the client left")  # nobody reads this answer
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            await _drain(receive, 8 * most if more else 0)
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is too large; expected at most {most} bytes")


async def _drain(receive: Receive, most: int) -> None:
    """Read the rest of a body: many clients read the answer only after sending it."""
    size, more = 0, most > 0
    try:
        async with asyncio.timeout(LINGER):
            while more and size < most:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        return
