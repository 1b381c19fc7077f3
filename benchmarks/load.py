"""Load on a service: clients that ask in turns, check every answer, and keep the times.

Every client keeps one connection and asks one text at a time. Clients and service share
the machine.
"""

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from benchmarks import processes

WORDS = (
    "the a film plot actor music of and is was not very quite slow bright thin story "
    "never better worse than first one two hours charming dull but that with it"
).split()
Question = tuple[bytes, Mapping[str, Any]]  # a request, and the answer to expect


class Tally(NamedTuple):
    """What the clients of one service have seen."""

    seconds: list[float]  # of each right answer
    errors: list[str]
    off: list[float]  # distance of each answer from the expected one


def drawn(n: int, seed: int = 0) -> list[str]:
    """Draw sentences of 3 to 40 words, most of them short."""
    chance = np.random.default_rng(seed)
    lengths = np.clip(chance.lognormal(2.5, 0.6, n).astype(int), 3, 40)
    return [" ".join(chance.choice(WORDS, size)) for size in lengths]


def off_by(got: Mapping[str, Any], want: Mapping[str, Any]) -> float:
    """Distance of an answer from the expected one."""
    if "score" in want:
        return abs(got["score"] - want["score"])
    return max(abs(got["probs"][name] - p) for name, p in want["probs"].items())


def request(body: str) -> bytes:
    """Bytes of a request to /predict."""
    head = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
    return f"{head}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def client(
    port: int, own: int, questions: Sequence[Question], until: float, tally: Tally
) -> None:
    """Ask one text after the other until a time of the clock."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    at = own * 37  # each client starts at another text
    while (start := time.perf_counter()) < until:
        body, want = questions[at % len(questions)]
        at += 1
        writer.write(body)
        try:
            status, got = await answer(reader)
        except (OSError, EOFError, ValueError) as e:
            tally.errors.append(repr(e))
            break
        if status != 200:
            tally.errors.append(f"status {status}: {got}")
            continue
        tally.seconds.append(time.perf_counter() - start)
        tally.off.append(off_by(got, want))
    writer.close()


async def load(
    port: int, questions: Sequence[Question], clients: int, seconds: float
) -> tuple[Tally, float]:
    """Keep clients busy for some seconds; return (tally, seconds until the last)."""
    tally, start = Tally([], [], []), time.perf_counter()
    rest = (questions, start + seconds, tally)
    await asyncio.gather(*[client(port, n, *rest) for n in range(clients)])
    return tally, time.perf_counter() - start


async def _metrics(port: int) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    text = (await reader.read()).decode()
    writer.close()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if "hypelora" in line]
    return {name: float(value) for name, value in lines if name[0] != "#"}


@contextmanager
def service(command: Sequence[str]) -> Iterator[tuple[int, dict[str, float]]]:
    """Start a service, and yield its port and a dict that gets its metrics at the end.

    Raises:
      RuntimeError: it does not start, or its exit code is not 0.
    """
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=processes.environment()
    )
    try:
        port, own = _port(process), dict[str, float]()
        yield port, own
        own |= asyncio.run(_metrics(port))
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    if process.returncode:
        raise RuntimeError(f"the service ended with {process.returncode}: {said}")


def _port(process: subprocess.Popen[str]) -> int:
    said = []
    for line in process.stderr or ():
        said.append(line)
        if "serving" in line:
            return int(line.split(" (")[0].rsplit(":", 1)[1])
    raise RuntimeError(f"the service did not start: {''.join(said[-20:])}")
