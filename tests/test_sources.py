"""Runs whose conditions no data give: of each text itself, and of noise."""

import json

import numpy as np
import pytest

import hypelora_jax
from hypelora_jax import cli
from hypelora_jax.data import npz

SMALL = (
    "--config.data.num_examples=128",
    "--config.data.max_length=24",
    "--config.optim.num_epochs=1",
    "--config.hyper.widths=(8,)",
)
TEXTS = ["a good film", "nothing", "a film that is longer than the others, and bad"]


def trained(folder, *flags):
    argv = ["train", "--config=smoke", f"--workdir={folder}", *SMALL, *flags]
    assert cli.main(argv) == 0
    return json.loads((folder / "summary.json").read_text())["metrics"]["validation"]


def test_a_run_with_an_adapter_for_each_text(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = ("source=instance", "jitter=0.1", "dropout=0.1")
    assert trained(folder, *(f"--config.condition.{f}" for f in flags))["nll"] > 0
    assert cli.main(["evaluate", f"--workdir={folder}"]) == 0
    predictor = hypelora_jax.load(str(folder))
    # texts of other lengths, in one batch and alone: the adapter is that of the text
    together = predictor.predict(TEXTS)
    for text, one in zip(TEXTS, together, strict=True):
        (alone,) = predictor.predict([text])
        for label, p in one["probs"].items():
            assert alone["probs"][label] == pytest.approx(p, abs=1e-5)
    capsys.readouterr()
    argv = ["export", f"--workdir={folder}", f"--output={tmp_path / 'out'}"]
    assert cli.main(argv) == 2
    line = capsys.readouterr().err.strip()
    assert "source=instance" in line and "no single adapter" in line
    assert len(line.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_hyper_ensemble_of_noise_averages_over_its_draws(tmp_path):
    folder = tmp_path / "run"
    flags = ("condition.source=noise", "uncertainty.kind=hyper_ensemble")
    flags = (*flags, "uncertainty.samples=3")
    judged = trained(folder, *(f"--config.{f}" for f in flags))
    about = judged["uncertainty"]
    assert about["members"] == 3
    kept = npz.read(folder / "eval" / "validation" / "predictions.npz")
    assert kept["member_logits"].shape[0] == 3
    assert np.abs(kept["member_logits"][0] - kept["member_logits"][1]).max() > 1e-6
    target = tmp_path / "out"
    argv = ["export", f"--workdir={folder}", "--format=peft", f"--output={target}"]
    assert cli.main(argv) == 0
    assert len(list(target.glob("member_*/*.safetensors"))) == 3
