import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import rich.console
from matplotlib import image

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.report import html, plots, runs, tables
from hypelora_jax.types import UserError


def test_load_run(make_run):
    folder = make_run("lora")
    run = html.load_run(folder)
    assert (run.name, run.config["method"]) == ("lora", "lora")
    state = calibrators.from_json((folder / "calibrator.json").read_text())
    assert run.temperature == state.temperature == pytest.approx(2.5, rel=0.2)
    raw, calibrated = run.metrics["validation"], run.metrics["validation"]["calibrated"]
    probs = calibrators.softmax(run.logits)
    assert raw["ece"] == metrics.compute_all(probs, run.labels)["ece"]
    assert calibrated["nll"] < raw["nll"] and calibrated["ece"] < raw["ece"]
    assert raw["mcc"] == calibrated["mcc"] == 0.31
    assert list(run.metrics) == ["validation", "test"]
    assert len(run.curve) == 108 and run.best_step == 50  # end of epoch 2


def test_load_run_of_which_little_is_there(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    run = runs.load_run(tmp_path)
    assert run.metrics == {} and run.logits is None and run.temperature is None
    assert list(run.curve) == [] and run.best_step is None
    html.write_report([run], tmp_path / "report.html")
    assert "No data in these runs" in (tmp_path / "report.html").read_text()


def test_a_line_still_being_written_is_left_out(make_run):
    folder = make_run("lora")
    with (folder / "metrics.jsonl").open("a") as f:
        f.write('{"step": 101, "los')
    assert len(runs.load_run(folder).curve) == 108
    with (folder / "metrics.jsonl").open("a") as f:
        f.write('\n{"step": 102}\n')
    with pytest.raises(UserError, match="metrics.jsonl:109: no JSON"):
        runs.load_run(folder)


def test_best_step_follows_select_on(make_run):
    assert runs.load_run(make_run("last", select_on="last")).best_step == 100
    nested = make_run("nested")
    (nested / "config.json").write_text('{"config": {"select_on": "last"}}')
    assert runs.load_run(nested).best_step == 100


def test_the_step_that_was_evaluated_is_the_chosen_one(make_run):
    folder = make_run("lora")
    file = folder / "eval" / "validation" / "metrics.json"
    file.write_text(json.dumps({"step": 75, **json.loads(file.read_text())}))
    assert runs.load_run(folder).best_step == 75


def test_without_a_calibrator_there_is_no_after(make_run):
    folder = make_run("lora")
    (folder / "calibrator.json").unlink()
    file = folder / "eval" / "validation" / "metrics.json"
    held = json.loads(file.read_text())
    file.write_text(json.dumps({**held["uncalibrated"], "temperature": 1.5}))
    run = runs.load_run(folder)
    assert run.temperature is None and run.train_temperature == 1.5
    assert "calibrated" not in run.metrics["validation"]
    assert len(tables.before_after([run]).rows) == 1
    panel = plots.panel_of(run)
    assert panel.after is None
    wanted = calibrators.softmax(run.logits.astype(np.float64), 1.5)
    np.testing.assert_array_equal(panel.before, wanted)


def test_a_learned_training_temperature_is_before(make_run):
    folder = make_run("lora")
    file = folder / "eval" / "validation" / "metrics.json"
    held = json.loads(file.read_text())
    held["uncalibrated"]["temperature"] = 1.5
    file.write_text(json.dumps(held))
    run = runs.load_run(folder)
    panel = plots.panel_of(run)
    wanted = calibrators.softmax(run.logits.astype(np.float64), 1.5)
    np.testing.assert_array_equal(panel.before, wanted)
    wanted = calibrators.softmax(run.logits.astype(np.float64), run.temperature)
    np.testing.assert_array_equal(panel.after, wanted)


def test_load_run_refuses(tmp_path, make_run):
    with pytest.raises(UserError, match="holds no config.json.*train a run"):
        runs.load_run(tmp_path / "absent")
    (tmp_path / "many" / "seed_0").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no config.json.*seed_"):
        runs.load_run(tmp_path / "many")
    folder = make_run("cut")
    (folder / "config.json").write_text('{"method"')
    with pytest.raises(UserError, match="config.json is not JSON"):
        runs.load_run(folder)
    (folder / "config.json").write_text("{}")
    np.savez(folder / "eval" / "validation" / "predictions.npz", labels=np.zeros(2))
    with pytest.raises(UserError, match="predictions.npz has no logits"):
        runs.load_run(folder)


def test_before_after_table(make_run):
    views = [runs.load_run(make_run("a")), runs.load_run(make_run("b", seed=1))]
    views.append(views[0]._replace(name="c", metrics={}))
    table = tables.before_after(views)
    assert table.columns == ("run", "T", "MCC", "Accuracy", "NLL", "ECE", "Brier")
    assert [row[0] for row in table.rows] == ["a", "", "b", ""]
    held = views[0].metrics["validation"]
    assert table.rows[0][5] == f"{held['ece']:.4f}"
    assert table.rows[1][1] == f"{views[0].temperature:.4g}"
    assert table.rows[1][5] == f"{held['calibrated']['ece']:.4f}"


def test_terminal_and_markdown_show_every_cell():
    named = {
        "a|[b]": {"n": 3, "ece": {"value": 0.1, "low": 0.05, "high": 0.2}},
        "c": {"nll": 1.5},
    }
    table = tables.of_metrics("title", named, ("n", "nll", "ece", "mcc"))
    assert tables.to_markdown(table) == (
        "| run | N | NLL | ECE |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| a\\|[b] | 3 | - | 0.1000 [0.0500, 0.2000] |\n"
        "| c | - | 1.5000 | - |\n"
    )
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(tables.to_rich(table))
    text = console.file.getvalue()
    for cell in ("title", "a|[b]", "0.1000 [0.0500, 0.2000]", "1.5000"):
        assert cell in text


def _pixels(data):
    return image.imread(io.BytesIO(data))


def test_figures_are_drawn(make_run, tmp_path):
    run = runs.load_run(make_run("three", classes=3))
    html.write_figures(run, tmp_path / "report")
    for name in ("reliability", "curves"):
        pixels = _pixels((tmp_path / "report" / f"{name}.png").read_bytes())
        assert pixels.shape[0] > 300 and pixels.std() > 0.05


def test_reliability_says_both_errors(make_run):
    run = runs.load_run(make_run("lora"))
    top, below = plots.reliability([plots.panel_of(run)]).axes
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    held = run.metrics["validation"]
    assert labels == [
        f"before: ECE {held['ece']:.3f}",
        f"T = {run.temperature:.3g}: ECE {held['calibrated']['ece']:.3f}",
    ]
    before, after = (step.get_data().values for step in below.patches[::2])
    assert before.sum() == pytest.approx(1) and after.sum() == pytest.approx(1)
    assert before[-1] > after[-1]  # a temperature above 1 takes confidence away


def test_curves_mark_the_chosen_epoch(make_run):
    top, below = plots.curves([runs.load_run(make_run("lora"))]).axes
    lines = {line.get_label(): line for line in top.lines}
    assert list(lines["chosen"].get_xdata()) == [2, 2]
    assert list(lines["validation NLL"].get_xdata()) == [1, 2, 3, 4]
    assert lines["train loss"].get_xdata()[-1] == 4
    np.testing.assert_allclose(below.lines[0].get_ydata(), [0.02, 0.04, 0.06, 0.08])


def test_curves_of_several_runs_fit_one_axis(make_run):
    low = runs.load_run(make_run("low"))
    rows = [{**row, "ece": 0.5} for row in low.curve if "ece" in row]
    figure = plots.curves([low, low._replace(curve=rows)])
    for axes in figure.axes:
        bottom, top = axes.get_ylim()
        drawn = [line for line in axes.lines if len(set(line.get_xdata())) > 1]
        highest = max(max(line.get_ydata()) for line in drawn)
        assert bottom == 0 and highest < top


def test_a_regression_run_has_curves_and_no_diagram(tmp_path):
    curve = [{"step": 10 * i, "split": "train", "loss": 1 / i} for i in range(1, 4)]
    logits, labels = np.ones((3, 1)), np.array([0.5, 1.0, 5.0])
    scores = {"validation": {"pearson": 0.8, "spearman": 0.79}}
    run = runs.RunView("stsb", {}, scores, logits, labels, None, curve)
    assert plots.panel_of(run) is None
    html.write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Pearson" in page and "0.8000" in page


class _Page(HTMLParser):
    """Tags that stay open, cells and images of a page."""

    def __init__(self, page):
        super().__init__()
        self.open, self.cells, self.images = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)
            self.cells += [""] if tag in ("td", "th") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_report_is_one_whole_page(make_run, tmp_path):
    evil = "<script>alert(1)</script>&"
    first = runs.load_run(make_run("lora"))
    second = runs.load_run(make_run("hyper", seed=1, method="hyper_mlp"))
    second = second._replace(name=evil, config={**second.config, "note": evil})
    html.write_report([first, second], tmp_path / "new" / "report.html")
    text = (tmp_path / "new" / "report.html").read_text()
    page = _Page(text)
    assert page.open == []
    assert "<script" not in text and not re.search(r'(src|href)="(?!data:)', text)
    assert len(page.images) == 2
    for src in page.images:
        assert _pixels(base64.b64decode(src.split(",")[1])).std() > 0.05
    for cell in (evil, json.dumps(evil), "optim.lr", "0.001", '"hyper_mlp"'):
        assert cell in page.cells
    held = first.metrics["validation"]
    for value in (held["ece"], held["calibrated"]["ece"], held["calibrated"]["mce"]):
        assert f"{value:.4f}" in page.cells
    differing = re.findall(r'<tr class="differs"><td>([^<]*)', text)
    assert differing == ["method", "note"]


def test_no_runs(tmp_path):
    with pytest.raises(ValueError, match="no runs"):
        html.write_report([], tmp_path / "report.html")
