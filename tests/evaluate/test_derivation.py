"""A finished run judged by another kind of uncertainty, in a run folder of its own."""

import json

import numpy as np
import pytest
from test_runs import few
from uncertain import with_kind

from hypelora_jax.commands import train as runs
from hypelora_jax.commands import uncertainty
from hypelora_jax.config.settings import UncertaintyConfig
from hypelora_jax.errors import UserError
from hypelora_jax.evaluate import evaluation
from hypelora_jax.report import html, series


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of LoRA and, below it, the same run under Laplace."""
    workdir = tmp_path_factory.mktemp("afterwards")
    summary = runs.train(few(method="lora"), str(workdir / "lora"), progress=False)
    how = UncertaintyConfig("laplace")
    return workdir, summary, derive(workdir, "laplace", how)


def derive(workdir, name, how):
    return uncertainty.derive(str(workdir / "lora"), str(workdir / name), how)


@pytest.mark.soak
def test_the_folder_is_a_run_like_one_trained_with_that_kind(trained, tmp_path):
    workdir, _, summary = trained
    settings = with_kind(few(method="lora"), "laplace", samples=5)
    whole = runs.train(settings, str(tmp_path / "whole"), progress=False)
    assert summary["metrics"] == whole["metrics"], "the same model, judged alike"
    assert summary["nll"] == whole["nll"] and summary["deltas"] == whole["deltas"]
    again = evaluation.evaluate(str(workdir / "laplace"), "test")
    assert again["nll"] == pytest.approx(summary["metrics"]["test"]["nll"], abs=1e-6)
    assert again["uncertainty"]["kind"] == "laplace"


def test_the_first_run_is_only_read_and_a_finished_folder_kept(trained):
    workdir, before, summary = trained
    held = json.loads((workdir / "lora/summary.json").read_text())
    assert held == before and not (workdir / "lora/laplace.npz").exists()
    files = {p: p.stat().st_mtime_ns for p in (workdir / "laplace").rglob("*.json")}
    assert derive(workdir, "laplace", UncertaintyConfig("laplace")) == summary
    assert files == {p: p.stat().st_mtime_ns for p in files}


def test_a_call_that_was_cut_short_goes_on(trained):
    workdir, _, summary = trained
    whole = (workdir / "laplace/summary.json").read_bytes()
    (workdir / "laplace/summary.json").unlink()
    step = summary["step"]
    next((workdir / f"laplace/checkpoints/{step}").glob("*")).unlink()
    again = derive(workdir, "laplace", UncertaintyConfig("laplace"))
    assert again == json.loads(whole)


def test_reports_say_what_is_averaged(trained, tmp_path):
    workdir, *_ = trained
    how = UncertaintyConfig("mc_dropout", 3, 0.5)
    found = derive(workdir, "dropped", how)["metrics"]["test"]["uncertainty"]
    assert found["members"] == 3 and 0 < found["disagreement"] < 1
    with np.load(workdir / "dropped/eval/test/predictions.npz") as held:
        assert held["member_logits"].shape[0] == 3
    paths = [workdir / name for name in ("lora", "dropped", "laplace")]
    page = tmp_path / "all.html"
    html.write_report(series.load_all(paths), page, "test", 0, ["html", "md", "csv"])
    said = f"mc_dropout, K = 3, {found['disagreement']:.1%} disagree"
    assert said in page.read_text() and "laplace, K = 1" in page.read_text()
    assert "| averages over |" in page.with_suffix(".md").read_text()
    assert said in page.with_suffix(".csv").read_text()


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        (
            "x",
            UncertaintyConfig("deep_ensemble"),
            "must be trained and cannot be chosen",
        ),
        ("laplace", UncertaintyConfig("laplace", link="probit"), "uncertainty.link"),
        ("lora", UncertaintyConfig("none"), "a run of its own training, not of"),
        ("", UncertaintyConfig("laplace"), "is not empty"),
    ],
)
def test_what_is_refused(name, how, message, trained):
    workdir, *_ = trained
    with pytest.raises(UserError, match=message):
        derive(workdir, name, how)
    assert not (workdir / "x").exists(), "nothing is made for what is refused"


def test_laplace_that_cannot_be_fitted_is_refused_before_training(tmp_path):
    lines = ["text,label", *(f"film {i},{i / 7:.2f}" for i in range(40))]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    scores = {"source": "files", "train": str(tmp_path / "scores.csv")}
    settings = with_kind(few(data=scores), "laplace")
    with pytest.raises(UserError, match="laplace needs classes"):
        runs.train(settings, str(tmp_path / "run"), progress=False)
    assert not (tmp_path / "run/config.json").exists()
