"""The queue alone: the order of answers, errors that reach callers, a full queue."""

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest

from hypelora_jax.serve import batching
from hypelora_jax.serve.batching import Batcher, Full, Query
from hypelora_jax.serve.meters import Meters

FLAT = {(rows, edge): 1.0 for rows in (1, 4) for edge in (8, 16)}
SLOW = "slow, and long"


@pytest.fixture
def asked(monkeypatch):
    """Batches in their order, as (adapter, rows, texts); "bad" fails, "slow" is."""
    batches = []

    def tokenise(own, texts):
        ids = [np.zeros(len(text[0]), np.int32) for text in texts]
        return SimpleNamespace(ids=ids, types=ids, truncated=0)

    def fields(own, rows, batch):
        texts = [q.query.texts[0] for q in batch]
        batches.append((own.name, rows, texts))
        time.sleep(0.3 * (SLOW in texts))
        if "bad" in texts:
            raise RuntimeError("out of memory")
        return [{"label": text} for text in texts]

    monkeypatch.setattr(batching, "tokenise", tokenise)
    monkeypatch.setattr(batching, "_fields", fields)
    return batches


def run(window, *questions, max_waiting=99, packs=0):
    """Answers or errors of questions (adapter, *texts) that all come at once."""
    own = {"edges": (8, 16), "answerers": {1: None, 4: None}, "packs": packs}
    pool = {name: SimpleNamespace(name=name, **own) for name in "ab"}

    async def all_of_them():
        own = (pool, dict.fromkeys("ab", FLAT), Meters(), window, max_waiting)
        async with Batcher(*own) as batcher:
            every = [
                batcher.ask(name, [Query((t,)) for t in own])
                for name, *own in questions
            ]
            return await asyncio.gather(*every, return_exceptions=True)

    start = time.monotonic()
    found = asyncio.run(all_of_them())
    out = [[x["label"] for x in got] if isinstance(got, list) else got for got in found]
    return out, time.monotonic() - start


def test_texts_gather_by_adapter_and_length_while_the_model_is_busy(asked):
    long = "a longer text"
    questions = [("b", SLOW), ("b", "1"), ("a", long), ("a", "2", "3"), ("b", "4")]
    out, _ = run(0.0, *questions)
    assert out == [[SLOW], ["1"], [long], ["2", "3"], ["4"]]
    assert asked[0] == ("b", 1, [SLOW])
    assert asked[1:] == [("b", 4, ["1", "4"]), ("a", 1, [long]), ("a", 4, ["2", "3"])]


def test_texts_of_all_lengths_gather_where_they_are_packed(asked):
    long = "of twelve   "
    texts = ["1", "2", long, "3", "another one."]
    out, _ = run(0.0, ("b", SLOW), ("a", *texts), packs=16)
    assert out == [[SLOW], texts]
    # a text counts as 8 tokens at least, and a batch has 4 rows or texts at most
    assert asked[1:] == [("a", 4, texts[:4]), ("a", 1, texts[4:])]


def test_an_idle_service_waits_for_more_unless_the_batch_is_full(asked):
    out, seconds = run(0.5, ("a", "1"), ("a", "2"))
    assert asked == [("a", 4, ["1", "2"])] and seconds >= 0.5
    asked.clear()
    out, seconds = run(5.0, ("b", "0"), ("a", "1", "2", "3", "4"), ("b", "5", "6", "7"))
    assert seconds < 2, "both are full"
    assert {name for name, *_ in asked} == {"a", "b"}
    assert [len(texts) for _, _, texts in asked] == [4, 4]


def test_a_fault_reaches_its_caller_and_the_next_question_is_answered(asked):
    out, _ = run(0.0, ("a", "bad"), ("b", "1"))
    assert isinstance(out[0], RuntimeError) and out[1] == ["1"]


def test_more_texts_than_may_wait_are_refused(asked):
    out, _ = run(0.0, ("a", SLOW, "1"), ("a", "2", "3"), ("b", "4"), max_waiting=3)
    assert out[0] == [SLOW, "1"] and isinstance(out[1], Full) and out[2] == ["4"]
