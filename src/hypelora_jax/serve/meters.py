"""Counters of a service, and their text for Prometheus (exposition format 0.0.4)."""

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator

import numpy as np

QUANTILES = (0.5, 0.9, 0.99)
LATEST = 10_000  # requests from which the quantiles are computed


@dataclasses.dataclass
class Meters:
    """Counts since the start; only the event loop writes them."""

    requests: Counter = dataclasses.field(default_factory=Counter)  # by (path, status)
    texts: Counter = dataclasses.field(default_factory=Counter)  # by adapter
    batches: int = 0
    slots: int = 0  # rows of all batches, with padding
    waiting: int = 0
    cut: int = 0  # texts longer than data.max_length
    programs: int = 0  # compiled after the start; should stay 0
    seconds: float = 0.0  # total of all answered requests
    answered: int = 0
    latest: deque = dataclasses.field(default_factory=lambda: deque(maxlen=LATEST))

    def saw_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request, and record its time if it is a /predict with status 200."""
        self.requests[path, status] += 1
        if path == "/predict" and status == 200:
            self.answered += 1
            self.seconds += seconds
            self.latest.append(seconds)

    def saw_batch(self, texts: Counter[str], rows: int) -> None:
        """Count a batch of `texts`, by adapter, that was padded to `rows`."""
        self.batches += 1
        self.texts.update(texts)
        self.slots += rows


def prometheus(meters: Meters) -> str:
    """Return all counts as lines for Prometheus."""
    return "".join(f"{line}\n" for line in _lines(meters))


def _lines(meters: Meters) -> Iterator[str]:
    texts = meters.texts.total()
    yield from _head("requests_total", "counter", "Requests by path and status.")
    for (path, status), n in sorted(meters.requests.items()):
        yield f'hypelora_requests_total{{path="{path}",status="{status}"}} {n}'
    yield from _head("texts_total", "counter", "Texts answered, by adapter.")
    for name, n in sorted(meters.texts.items()):
        yield f'hypelora_texts_total{{adapter="{_escaped(name)}"}} {n}'
    mean = texts / meters.batches if meters.batches else 0.0
    for name, kind, about, value in (
        ("batches_total", "counter", "Batches computed.", meters.batches),
        ("batch_rows_total", "counter", "Their rows, padding too.", meters.slots),
        ("batch_size_mean", "gauge", "Texts a batch, on average.", mean),
        ("cut_texts_total", "counter", "Cut to data.max_length.", meters.cut),
        ("waiting_texts", "gauge", "Texts without an answer.", meters.waiting),
        (
            "programs_total",
            "counter",
            "Programs compiled after the warm-up.",
            meters.programs,
        ),
    ):
        yield from _head(name, kind, about)
        yield f"hypelora_{name} {value}"
    about = f"Of POST /predict with status 200; quantiles of the latest {LATEST}."
    yield from _head("request_seconds", "summary", about)
    if meters.latest:
        at = np.quantile(np.array(meters.latest), QUANTILES)
        for q, value in zip(QUANTILES, map(float, at), strict=True):
            yield f'hypelora_request_seconds{{quantile="{q}"}} {value}'
    yield f"hypelora_request_seconds_sum {meters.seconds}"
    yield f"hypelora_request_seconds_count {meters.answered}"


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP hypelora_{name} {about}"
    yield f"# TYPE hypelora_{name} {kind}"


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
