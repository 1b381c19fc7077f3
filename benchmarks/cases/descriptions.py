"""A question about a new task, which the service has to embed, against a known task.

The run reads descriptions, and its base model and encoder are MiniLM. One client asks
texts of 3 to 40 words. New descriptions have 4 to 14 words; what they cost is to be at
most half the time of a known one and 50 ms.
"""

import http.client
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import load, processes, timing
from benchmarks.case import Case, Options
from benchmarks.rows import Mismatch, Row, of_times

FACTOR, MORE = 1.5, 0.05  # a new one may take FACTOR times a known one and MORE seconds
TOLERANCE = 1e-5  # of a probability
HEADERS = {"content-type": "application/json"}
TASKS = {
    "defaults": {"data": {"source": "synthetic", "num_examples": 200}},
    "tasks": [
        {"name": f"task_{i}", "description": f"Is it the kind of text number {i}?"}
        for i in range(8)
    ],
}
TRAIN = (
    *("train", "--config=tasks", "--config.tasks.steps=4"),
    *("--config.optim.num_epochs=1", "--config.data.max_length=64"),
)


def described(number: int) -> str:
    """A description that no other number has."""
    chance = np.random.default_rng(number)
    words = chance.choice(load.WORDS, chance.integers(2, 12))
    return f"Is it {' '.join(words)} {number}?"


def asked(port: int, question: dict[str, Any]) -> dict[str, Any]:
    """The answer to one question.

    Raises:
      Mismatch: the service gave no answer.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", json.dumps(question), HEADERS)
    response = connection.getresponse()
    told = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise Mismatch(f"the service did not answer: {told}")
    return told


def new_and_known(options: Options) -> Iterator[Row]:
    """A new description against a known one."""
    with tempfile.TemporaryDirectory() as folder:
        file, workdir = Path(folder, "tasks.json"), f"{folder}/run"
        file.write_text(json.dumps(TASKS))
        flags = (f"--config.tasks.file={file}", f"--workdir={workdir}")
        processes.python("-m", "hypelora_jax.cli", *TRAIN, *flags)
        command = ["hypelora_jax.cli", "serve", "--port=0", "--rate=0"]
        service = [sys.executable, "-m", *command, f"--workdir={workdir}"]
        with load.service(service) as (port, metrics):
            found = _in_turns(port, options.seconds)
    known = statistics.median(found.theirs.wall)
    notes = {"at_most": FACTOR * known + MORE}
    notes["compiled"] = metrics["hypelora_programs_total"]
    yield of_times("descriptions/new", "a known description", found, **notes)


def _in_turns(port: int, seconds: float) -> timing.Compared:
    texts, numbers = load.drawn(500), itertools.count(1)
    answers = dict[int, dict[str, Any]]()

    def new() -> None:
        n = next(numbers)
        question = {"text": texts[n % len(texts)], "description": described(n)}
        answers[n] = asked(port, question)

    def known() -> None:
        text = texts[max(answers, default=0) % len(texts)]
        asked(port, {"text": text, "description": described(0)})

    found = timing.compare(new, {"known": known}, seconds, least=30)
    for n, told in answers.items():  # most of them have left the bank since
        text = texts[n % len(texts)]
        again = asked(port, {"text": text, "description": described(n)})
        if (off := load.off_by(again, told)) > TOLERANCE:
            raise Mismatch(f"the answer for description {n} has changed by {off:.2g}")
    return found


CASES = {"descriptions/new": Case(new_and_known)}
