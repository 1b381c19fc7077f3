"""Measure the questions a second of `hypelora serve`, with and without batching.

    python benchmarks/serve.py --workdir=DIR [--workdir=DIR2] [--seconds=60]

Every client keeps one connection and asks the adapters in turn, one text at a time. The
script compares every answer with `predict`. Clients and service share the machine. The
load comes first, then both services in turns. The last line is one JSON object, and the
exit code is 1 if an answer was wrong or missing.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np

import hypelora_jax
from hypelora_jax import files
from hypelora_jax.commands.shared.flags import PathFlags
from hypelora_jax.run.paths import Run

WORDS = (
    "the a film plot actor music of and is was not very quite slow bright thin story "
    "never better worse than first one two hours charming dull but that with it"
).split()
TOLERANCE = 1e-5
ROUNDS = 3


def drawn(n, seed=0):
    """Draw sentences of 3 to 40 words, most of them short."""
    chance = np.random.default_rng(seed)
    lengths = np.clip(chance.lognormal(2.5, 0.6, n).astype(int), 3, 40)
    return [" ".join(chance.choice(WORDS, size)) for size in lengths]


def wanted(workdirs, texts):
    """Return pairs (adapter, answers of `predict` to all texts)."""
    out = []
    for workdir in workdirs:
        model = hypelora_jax.load(workdir)
        out.append((Run.open(workdir).name, model.predict(texts)))
    return out


def off_by(got, want):
    if "score" in want:
        return abs(got["score"] - want["score"])
    return max(abs(got["probs"][name] - p) for name, p in want["probs"].items())


def started(workdirs, *flags):
    command = [
        sys.executable,
        "-m",
        "hypelora_jax.cli",
        "serve",
        "--port=0",
        "--rate=0",
    ]
    command += [*(f"--workdir={w}" for w in workdirs), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "serving" in line:
            return process, int(line.split(" (")[0].rsplit(":", 1)[1])
    sys.exit(f"the service did not start: {line}")


def request(body):
    head = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
    return f"{head}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


async def answer(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def client(port, own, questions, until, tally):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    at = own * 37  # each client starts at another text
    while (start := time.perf_counter()) < until:
        body, want = questions[at % len(questions)]
        at += 1
        writer.write(body)
        try:
            status, got = await answer(reader)
        except (OSError, EOFError, ValueError):
            tally["errors"] += 1
            break
        if status != 200:
            tally["errors"] += 1
            continue
        tally["seconds"].append(time.perf_counter() - start)
        tally["off"] = max(tally["off"], off := off_by(got, want))
        tally["wrong"] += off > TOLERANCE
    writer.close()


async def load(port, questions, clients, seconds):
    tally = {"seconds": [], "errors": 0, "wrong": 0, "off": 0.0}
    start = time.perf_counter()
    rest = (questions, start + seconds, tally)
    await asyncio.gather(*[client(port, n, *rest) for n in range(clients)])
    return tally, time.perf_counter() - start


async def metrics(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    text = (await reader.read()).decode()
    writer.close()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if "hypelora" in line]
    return {name: float(value) for name, value in lines if name[0] != "#"}


@contextmanager
def service(workdirs, *flags):
    """Yield the port of a service, and a dict that gets its metrics at the end."""
    process, port = started(workdirs, *flags)
    own = {}
    try:
        yield port, own
        told = asyncio.run(metrics(port))
        own["mean_batch"] = round(told["hypelora_batch_size_mean"], 2)
        own["compiled"] = int(told["hypelora_programs_total"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        own["exit_code"] = process.returncode


def summary(tally, seconds):
    p50, p99 = (float(x) for x in np.quantile(tally["seconds"], (0.5, 0.99)))
    return {
        "questions": len(tally["seconds"]),
        "seconds": round(seconds, 2),
        "per_second": round(len(tally["seconds"]) / seconds, 1),
        "p50_ms": round(1000 * p50, 1),
        "p99_ms": round(1000 * p99, 1),
        "errors": tally["errors"],
        "wrong": tally["wrong"],
        "largest_difference": tally["off"],
    }


def alternated(ports, questions, clients, seconds):
    """Measure several services in turns, because the machine may be busy at times."""
    tallies = {name: [] for name in ports}
    for _ in range(ROUNDS):
        for name, port in ports.items():
            slice_ = load(port, questions, clients, seconds / ROUNDS)
            tallies[name].append(asyncio.run(slice_))
    out = {}
    for name, parts in tallies.items():
        both = {"seconds": [], "off": 0.0, "errors": 0, "wrong": 0}
        for tally, _ in parts:
            both = {
                n: max(x, tally[n]) if n == "off" else x + tally[n]
                for n, x in both.items()
            }
        out[name] = summary(both, sum(seconds for _, seconds in parts))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action=PathFlags, required=True, dest="workdirs")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60, help="of the load")
    parser.add_argument("--compare", type=float, default=30, help="seconds of each")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--max_batch", type=int, default=32)
    parser.add_argument("--window_ms", type=float, default=2)
    args = parser.parse_args()
    files.keep_compiled()
    texts = drawn(args.texts)
    pairs = wanted(args.workdirs, texts)
    questions = [
        (request(json.dumps({"text": text, "adapter": name})), answers[i])
        for i, text in enumerate(texts)
        for name, answers in pairs
    ]
    flags = (f"--max_batch={args.max_batch}", f"--window_ms={args.window_ms}")
    with (
        service(args.workdirs, *flags) as (port, own),
        service(args.workdirs, "--max_batch=1") as (other, others),
    ):
        tally, seconds = asyncio.run(load(port, questions, args.clients, args.seconds))
        out = {"load": summary(tally, seconds)}
        ports = {"batched": port, "unbatched": other}
        out |= alternated(ports, questions, args.clients, args.compare)
    out["load"] |= own
    out["unbatched"] |= others
    for name, one in out.items():
        print(f"{name:10s}", *(f"{k}={v}" for k, v in one.items()))
    speedup = out["batched"]["per_second"] / out["unbatched"]["per_second"]
    print(json.dumps(out | {"speedup": round(speedup, 2)}))
    bad = sum(one[key] for one in out.values() for key in ("errors", "wrong"))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
