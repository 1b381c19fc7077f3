"""Small run folders with all the files of a finished run, as fixtures."""

import json

import numpy as np
import pytest

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.run import predictions


def _write_split(folder, logits, labels, temperature, scores):
    raw = metrics.compute_all(calibrators.softmax(logits), labels)
    calibrated = metrics.compute_all(calibrators.softmax(logits, temperature), labels)
    ids = np.arange(len(labels)) + 100
    predictions.write(folder / "predictions.npz", logits, labels, ids)
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


def _logits(seed, classes, n, noise):
    """Logits of labels drawn from them, then blurred: too sure by a factor of 2.5.

    The same seed gives the same examples, whatever the noise.
    """
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(n, classes)).astype(np.float32)
    uniform = draw.random((n, 1))
    cumulative = np.cumsum(calibrators.softmax(logits.astype(np.float64)), axis=1)
    labels = np.minimum((uniform > cumulative).sum(axis=1), classes - 1)
    logits += noise * draw.normal(size=logits.shape).astype(np.float32)
    return logits * 2.5, labels


@pytest.fixture
def make_run(tmp_path):
    """`make_run(name, seed=0, classes=2, **config)` writes a folder, gives its path."""

    def make(name, seed=0, classes=2, n=600, noise=0, **config):
        folder = tmp_path / name
        logits, labels = _logits(seed, classes, n, noise)
        state = calibrators.build("temperature").fit(logits, labels)
        for split in ("calibration", "test", "validation"):
            (folder / "eval" / split).mkdir(parents=True)
            _write_split(
                folder / "eval" / split,
                logits,
                labels,
                state.temperature,
                {"mcc": 0.31},
            )
        (folder / "calibrator.json").write_text(calibrators.to_json(state))
        config = {"method": "lora", "optim": {"lr": 1e-3}, **config}
        (folder / "config.json").write_text(json.dumps(config))
        lines = [json.dumps(row) for row in _curve(4, 25)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make


@pytest.fixture
def make_seeds(make_run):
    """`make_seeds(name, noises, first=0)`: a folder of seeds on the same examples."""

    def make(name, noises, first=0):
        for i, noise in enumerate(noises):
            path = make_run(f"{name}/seed_{i}", noise=noise, seed=0)
            config = {"config": {"method": "lora", "seed": first + i}}
            (path / "config.json").write_text(json.dumps(config))
        return path.parent

    return make
