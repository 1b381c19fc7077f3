"""What stands before the service: hosts, rate, size of bodies; and what is counted.

A plain ASGI application around another one, so that nothing is parsed of what is
refused. Every refusal is {"error": "..."}, one line.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from hypelora_jax.serve.meters import Meters

App = Callable[[dict, Callable, Callable], Any]
PATHS = ("/", "/predict", "/adapters", "/healthz", "/metrics", "/docs", "/openapi.json")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CLIENTS = 10_000  # addresses whose rate is kept; the one seen longest ago is forgotten
LINGER = 2.0  # seconds in which the rest of a body too large is read and dropped
_PLAIN = [
    (b"content-type", b"application/json"),
    (b"x-content-type-options", b"nosniff"),
]


class Limits(NamedTuple):
    """Bounds of what is answered."""

    max_body: int = 1 << 20  # bytes
    max_texts: int = 256  # of a request
    max_chars: int = 10_000  # of a text
    rate: float = 1000.0  # questions a second of one address; 0: no limit
    patience: float = 10.0  # seconds for a body to arrive


class Refusal(Exception):
    """An answer other than 200: `status`, and the line that says why."""

    def __init__(self, status: int, line: str, retry_after: int = 0):
        super().__init__(line)
        self.status, self.retry_after = status, retry_after


def guarded(app: App, limits: Limits, meters: Meters, hosts: tuple[str, ...]) -> App:
    """The application behind its limits; `hosts`: names it answers to, (): any."""
    spend = _rates(limits.rate)

    async def guard(scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":  # lifespan
            await app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def counted(message: dict) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            _check_host(scope, hosts)
            if scope["method"] == "POST":
                spend((scope.get("client") or ("",))[0])
                _check_type(scope)
                receive = await _body(scope, receive, limits)
            await app(scope, receive, counted)
        except Refusal as no:
            await refuse(no, counted)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            meters.saw_request(path, status, time.perf_counter() - start)

    return guard


async def refuse(no: Refusal, send: Callable) -> None:
    """Send a refusal; the connection ends where its body was not read."""
    headers = [*_PLAIN]
    if no.retry_after:
        headers.append((b"retry-after", str(no.retry_after).encode()))
    if no.status in (408, 413):
        headers.append((b"connection", b"close"))
    body = json.dumps({"error": str(no)}).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    start = {"type": "http.response.start", "status": no.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _check_host(scope: dict, hosts: tuple[str, ...]) -> None:
    """Refuse other names: a web page may give its own name this address."""
    given = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    name = given.rsplit(":", 1)[0] if not given.endswith("]") else given
    if hosts and name.strip("[]") not in hosts:
        raise Refusal(400, f"this service is not {given[:60]!r}; wanted {hosts[0]}")


def _check_type(scope: dict) -> None:
    """Refuse what a page of another site may send without asking its browser."""
    given = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    if given.split(";")[0].strip().lower() != "application/json":
        kind = given[:60] or "none"
        raise Refusal(415, f"content-type is {kind}; wanted application/json")


def _rates(rate: float) -> Callable[[str], None]:
    """A bucket of tokens for each address: `rate` a second, at most a second's."""
    held: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(client: str) -> None:
        if not rate:
            return
        now = time.monotonic()
        tokens, since = held.pop(client, (max(rate, 1.0), now))
        tokens = min(max(rate, 1.0), tokens + rate * (now - since))
        held[client] = (tokens - (tokens >= 1), now)
        if len(held) > CLIENTS:
            held.popitem(last=False)
        if tokens < 1:
            wait = int((1 - tokens) / rate) + 1
            raise Refusal(429, f"more than {rate:g} requests a second; wait", wait)

    return spend


async def _body(scope: dict, receive: Callable, limits: Limits) -> Callable:
    """The whole body, as a new `receive`."""
    most = limits.max_body
    claimed = dict(scope["headers"]).get(b"content-length", b"0")
    if int(claimed) > most:  # the server has seen to it that this is a number
        await _drain(receive, 8 * most if int(claimed) <= 8 * most else 0)
        raise _too_large(most)
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(limits.patience):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "the client left")  # nobody reads it
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > most:
                    await _drain(receive, 8 * most if more else 0)
                    raise _too_large(most)
    except TimeoutError as e:
        raise Refusal(408, f"no whole body in {limits.patience:g} s; send it") from e
    whole = {"type": "http.request", "body": b"".join(parts), "more_body": False}

    async def again() -> dict:
        nonlocal whole
        if whole is None:
            return await receive()  # waits for the client to leave
        message, whole = whole, None
        return message

    return again


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is too large; wanted at most {most} bytes")


async def _drain(receive: Callable, most: int) -> None:
    """Read what a client still sends, so that it comes to read the answer."""
    size, more = 0, most > 0
    try:
        async with asyncio.timeout(LINGER):
            while more and size < most:
                message = await receive()
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        return
