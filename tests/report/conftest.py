"""A small run folder with all the files of a finished run."""

import json

import numpy as np
import pytest

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.report import predictions


def _write_split(folder, logits, labels, temperature, scores):
    raw = metrics.compute_all(calibrators.softmax(logits), labels)
    calibrated = metrics.compute_all(calibrators.softmax(logits, temperature), labels)
    predictions.write_npz(folder / "predictions.npz", logits, labels)
    held = {**calibrated, **scores, "uncalibrated": raw}
    (folder / "metrics.json").write_text(json.dumps(held))


def _curve(epochs, steps):
    rows = []
    for step in range(1, epochs * steps + 1):
        epoch = -(-step // steps)
        loss = 0.69 * np.exp(-step / (epochs * steps)) + 0.03 * np.sin(step)
        rows.append({"step": step, "epoch": epoch, "split": "train", "loss": loss})
        if step % steps == 0:
            nll = 0.55 + 0.02 * (epoch - 2) ** 2
            row = {"step": step, "epoch": epoch, "nll": nll, "ece": 0.02 * epoch}
            rows += [{**row, "split": s} for s in ("calibration", "validation")]
    return rows


@pytest.fixture
def make_run(tmp_path):
    """`make_run(name, seed=0, classes=2, **config)` writes a folder, gives its path."""

    def make(name, seed=0, classes=2, n=600, **config):
        folder = tmp_path / name
        for split in ("test", "validation"):
            (folder / "eval" / split).mkdir(parents=True)
        draw = np.random.default_rng(seed)
        logits = draw.normal(size=(n, classes)).astype(np.float32)
        uniform = draw.random((n, 1))
        cumulative = np.cumsum(calibrators.softmax(logits.astype(np.float64)), axis=1)
        labels = np.minimum((uniform > cumulative).sum(axis=1), classes - 1)
        logits *= 2.5  # too sure of itself: the right temperature is 2.5
        state = calibrators.temperature().fit(logits, labels)
        (folder / "calibrator.json").write_text(calibrators.to_json(state))
        for split in ("test", "validation"):
            _write_split(
                folder / "eval" / split,
                logits,
                labels,
                state.temperature,
                {"mcc": 0.31},
            )
        config = {"method": "lora", "optim": {"lr": 1e-3}, **config}
        (folder / "config.json").write_text(json.dumps(config))
        lines = [json.dumps(row) for row in _curve(4, 25)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make
