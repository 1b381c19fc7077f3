"""The answer to a text: its keys in Python and JSON, and its columns in a table."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hypelora_jax.run.prediction_rows import PROB

Fields = dict[str, Any]


def of_scores(logits_NY: np.ndarray) -> list[Fields]:
    """Build the answers of a regression: the predicted number, under two names."""
    return [{"label": score, "score": score} for score in map(float, logits_NY[:, 0])]


def of_classes(
    labels: Sequence[str],
    probs_NY: np.ndarray,
    member_NY: np.ndarray | None = None,
    abstain: float = 0.0,
) -> Iterator[Fields]:
    """Yield the answers of a classifier.

    Args:
      labels: names of the classes.
      probs_NY: calibrated probabilities.
      member_NY: which classes are in the conformal set; None adds no sets.
      abstain: confidence below which the label is None; 0 always gives a label.
    """
    for n, probs_Y in enumerate(probs_NY):
        best = int(np.argmax(probs_Y))
        confidence = float(probs_Y[best])
        out: Fields = {"label": labels[best], "confidence": confidence}
        out["probs"] = dict(zip(labels, map(float, probs_Y), strict=True))
        if member_NY is not None:  # the most probable class comes first
            order = np.argsort(-probs_Y, kind="stable")
            out["set"] = [labels[k] for k in order if member_NY[n, k]]
        if abstain:
            out["abstained"] = confidence < abstain
            out["label"] = None if out["abstained"] else out["label"]
        yield out


def columns_of_classes(labels: Sequence[str], sets: bool, abstains: bool) -> list[str]:
    """Return the columns that the answers of a classifier add to a table."""
    out = ["label", "confidence", *map(_column, labels)]
    out += ["set"] if sets else []
    return out + (["abstained"] if abstains else [])


def flat(answer: Fields) -> Fields:
    """Return the answer with one cell for each probability."""
    out = {name: value for name, value in answer.items() if name != "probs"}
    return out | {_column(n): p for n, p in answer.get("probs", {}).items()}


def _column(label: str) -> str:
    return f"{PROB}{label}"
