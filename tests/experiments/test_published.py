import json

import numpy as np
import published
import pytest
import scipy.stats

from hypelora_jax.calibration import metrics
from hypelora_jax.calibration.metrics import scores
from hypelora_jax.errors import UserError
from hypelora_jax.report import comparison, figures, series

PAPER = {("lora", "mcc"): published.Published(0.6394, 0.0021)}
PAPER |= {("lora", "ece"): published.Published(0.043, None)}


def test_one_seed_has_intervals_over_examples(make_run):
    method = series.load(make_run("lora"))
    names = ("mcc", "ece", "tace_0.01_reference")
    held = published.cells(method, names, replicas=50)
    probs, _, labels = series.examples(method.seeds[0], "validation")[:3]
    every = metrics.compute_all(probs, labels)
    assert held["mcc"].value == scores.mcc(probs.argmax(axis=1), labels)
    assert held["ece"].value == every["ece"]
    for name in ("mcc", "ece"):
        assert held[name].low < held[name].value < held[name].high
    told = every["tace_0.01_reference"]
    assert held["tace_0.01_reference"] == comparison.Cell(told), "has no interval"
    assert published.cells(method, ("mcc",), replicas=0)["mcc"].low is None


def test_several_seeds_have_students_t(make_seeds):
    method = series.load(make_seeds("lora", (0, 0.5, 1.0)))
    held = published.cells(method, ("mcc", "ece"), replicas=0)
    values = held["mcc"].values
    assert held["mcc"].value == pytest.approx(np.mean(values))
    assert held["mcc"].spread == pytest.approx(np.std(values, ddof=1))
    half = 4.303 * np.std(values, ddof=1) / np.sqrt(3)
    assert held["mcc"].high - held["mcc"].value == pytest.approx(half, rel=1e-3)
    table = published.table("cola", {"lora": (method, held)}, PAPER)
    assert table.rows[0][:3] == ("lora", "2/2/2", "MCC")
    assert (
        table.rows[0][3]
        == f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"
    )
    assert [row[5] for row in table.rows] == ["63.94 ± 0.21", "0.043"]
    told = published.as_dict("lora", held, PAPER)
    assert told["ece"]["paper"] == {"mean": 0.043, "std": None}
    assert json.loads(json.dumps(told))["mcc"]["ours"]["values"] == list(values)
    assert published.as_dict("other", held, PAPER)["mcc"]["paper"] is None


def test_a_run_without_predictions_is_refused(make_run):
    folder = make_run("lora")
    (folder / "eval/validation/predictions.npz").unlink()
    with pytest.raises(UserError, match="lora has no labelled predictions of valid"):
        published.cells(series.load(folder), ("ece",), 0)


def test_curves_are_means_over_seeds(make_seeds):
    folder = make_seeds("lora", (0, 0))
    rows = [
        {"step": 25 * e, "epoch": e, "split": "validation", "mcc": 0.1 * e, "ece": 0.2}
        for e in (1, 2)
    ]
    (folder / "seed_1/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [row | {"mcc": 0.5, "ece": 0.4} for row in rows]
    (folder / "seed_0/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    got = published.curve(series.load(folder), "mcc")
    assert got.epochs == [1, 2] and got.score == pytest.approx([0.3, 0.35])
    assert got.ece == pytest.approx([0.3, 0.3])
    other = published.Curve("MLP", [1], [0.2], [0.1])
    panels = [
        published.Panel("ours", "mcc", [got]),
        published.Panel("paper", "mcc", [other]),
    ]
    figure = published.over_epochs(panels)
    top = figure.axes[0]
    assert top.get_ylabel() == "MCC" and top.get_title() == "ours"
    lines = [one.get_lines()[0] for one in figure.axes[:2]]
    assert lines[0].get_color() != lines[1].get_color(), "a mark a name, in all panels"
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["lora", "MLP"]
    assert figures.png(figure).startswith(b"\x89PNG")


def test_scores_have_the_intervals_of_resampled_counts():
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 2, 400)
    predictions = np.where(chance.random(400) < 0.8, labels, 1 - labels)
    got = published.score_intervals(("mcc", "accuracy"), predictions, labels)
    p = got["accuracy"]["value"]
    assert p == np.mean(predictions == labels)
    # the number of hits of a replica is binomial
    for side, tail in (("low", 0.025), ("high", 0.975)):
        exact = scipy.stats.binom.ppf(tail, 400, p) / 400
        assert got["accuracy"][side] == pytest.approx(exact, abs=0.006)
    at = got["mcc"]
    assert at["low"] < at["value"] == scores.mcc(predictions, labels) < at["high"]
    again = published.score_intervals(("mcc",), predictions, labels, seed=1)["mcc"]
    assert again["value"] == at["value"] and again["low"] != at["low"]
    same = published.score_intervals(("mcc",), labels, labels, replicas=5)["mcc"]
    assert same == {"value": 1.0, "low": 1.0, "high": 1.0}
    with pytest.raises(UserError, match="score 'auc' is unknown"):
        published.score_intervals(("auc",), predictions, labels)
