import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import image

from hypelora_jax.errors import UserError
from hypelora_jax.report import (
    figures,
    html,
    markup,
    metric_tables,
    reliability,
    series,
)
from hypelora_jax.report.series import Series
from hypelora_jax.run import results
from hypelora_jax.run.paths import Run
from hypelora_jax.run.predictions import Predictions
from hypelora_jax.run.results import Results

VOID = ("img", "meta")
# What makes a browser ask for something when it opens a page.
FETCHES = {"src", "href", "srcset", "data", "poster", "action", "background", "style"}


class _Page(HTMLParser):
    """Tags that stay open, rows of cells, images and addresses of a page."""

    def __init__(self, page):
        super().__init__()
        self.open, self.rows, self.images, self.tags = [], [], [], []
        self.addresses, self.names = [], []
        self.feed(page)

    @property
    def cells(self):
        return [cell for row in self.rows for cell in row]

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in FETCHES]
        if tag == "img":
            self.images.append((held["alt"], held["src"]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.names.append(held.get("data-name"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Coarse pictures: what they show is tested in test_reliability.py."""
    monkeypatch.setattr(figures, "DPI", 30)


def _report(
    tmp_path, methods, formats=("html",), name="report.html", split="validation"
):
    html.write_report(methods, tmp_path / "new" / name, split, 0, formats)
    text = (tmp_path / "new" / name).read_text()
    return text, _Page(text)


def test_report_is_one_whole_page(make_run, tmp_path):
    evil = "<script>alert(1)</script>&"
    first = results.read(Run.open(make_run("lora")))
    second = results.read(Run.open(make_run("hyper", seed=1, method="hyper_mlp")))
    second = second._replace(name=evil, config={**second.config, "note": evil})
    text, page = _report(
        tmp_path, [Series(one.name, (one,)) for one in (first, second)]
    )
    assert page.open == []
    assert len(page.images) == 5  # two diagrams, one of risk, two of training
    for alt, src in page.images:
        kind, data = src.split(",")
        assert kind == "data:image/png;base64" and alt
        assert image.imread(io.BytesIO(base64.b64decode(data))).std() > 0.05
    for cell in (evil, json.dumps(evil), "optim.lr", "0.001", '"hyper_mlp"'):
        assert cell in page.cells
    held = first.metrics["validation"]
    for value in (held["ece"], held["calibrated"]["ece"], held["calibrated"]["mce"]):
        assert f"{value:.4f}" in page.cells
    differing = re.findall(r'<tr class="differs"><td[^>]*><span>([^<]*)', text)
    assert differing == ["method", "note"]


def test_nothing_is_fetched_when_the_page_is_opened(make_run, tmp_path):
    text, page = _report(
        tmp_path, [series.load(make_run("a")), series.load(make_run("b"))]
    )
    assert page.addresses and all(a.startswith("data:") for a in page.addresses)
    banned = {"script", "link", "iframe", "object", "embed", "base", "video", "audio"}
    assert not banned & set(page.tags)
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[^\"]+", "", text))
    assert "http-equiv" not in text


def test_cells_name_their_columns_for_a_narrow_window(make_run):
    run = results.read(Run.open(make_run("a")))
    table = metric_tables.before_after([run])
    page = _Page(markup.table(table) + markup.configs([run, run]))
    names = [name for name in page.names if name]
    assert names[: 2 * len(table.columns)] == [*table.columns] * 2
    assert names[2 * len(table.columns) :][:3] == ["field", "a", "a"]


def test_formats_stand_beside_the_page(make_run, tmp_path):
    methods = [series.load(make_run("a")), series.load(make_run("b", noise=0.8))]
    _report(tmp_path, methods, html.FORMATS, "x.html", "test")
    names = {path.name for path in (tmp_path / "new").iterdir()}
    drawn = {"x_reliability.png", "x_risk_coverage.png", "x_curves.png"}
    assert names == {"x.html", "x.md", "x.csv", "x.tex"} | drawn
    lines = (tmp_path / "new" / "x.md").read_text().splitlines()
    assert lines[0] == "# Calibration report: a, b"
    assert "## test, as trained" in lines and "## test, calibrated" in lines
    tex = (tmp_path / "new" / "x.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") >= 2
    rows = list(csv.DictReader(io.StringIO((tmp_path / "new" / "x.csv").read_text())))
    assert {row["stage"] for row in rows} == {"as trained", "calibrated"}
    ece = reliability.panel_of(methods[0], "test").stages[0].ece
    (row,) = [
        row
        for row in rows
        if (row["stage"], row["method"], row["metric"]) == ("as trained", "a", "ece")
    ]
    assert float(row["value"]) == pytest.approx(ece, abs=1e-12)
    _report(tmp_path / "one", methods, formats=("html",))
    assert [p.name for p in (tmp_path / "one" / "new").iterdir()] == ["report.html"]


def test_seeds_are_one_row_and_one_panel(make_run, make_seeds, tmp_path):
    methods = [
        series.load(make_seeds("b", [0.2, 0.5, 0.9])),
        series.load(make_run("a")),
    ]
    _, page = _report(tmp_path, methods)
    assert len(page.images) == 5
    row = next(row for row in page.rows if row and row[0] == "b3 seeds")
    assert re.fullmatch(r"0\.\d{4}± 0\.\d{4}\[0\.\d{4}, \d\.\d{4}\]", row[5])
    alts = [alt for alt, _ in page.images]
    assert alts[0].startswith("Reliability diagram of b, 3 seeds: as trained ECE 0.")
    assert {"b/seed_0", "b/seed_1", "b/seed_2", "a"} <= set(page.cells)


def test_a_regression_run_has_curves_and_no_diagram(tmp_path):
    curve = [{"step": 10 * i, "split": "train", "loss": 1 / i} for i in range(1, 4)]
    arrays = {"test": Predictions(np.ones((3, 1)), np.array([0.5, 1.0, 5.0]))}
    scores = {"test": {"pearson": 0.8, "spearman": 0.79}}
    run = Results("stsb", {}, scores, arrays, curve=curve)
    text, page = _report(
        tmp_path, [Series(run.name, (run,))]
    )  # no validation: the split there is
    assert ["stsb", "-", "3", "0.8000", "0.7900"] in page.rows
    assert "No data in these runs" in text and len(page.images) == 1


def test_what_cannot_be_reported_is_refused(make_run, tmp_path):
    with pytest.raises(ValueError, match="no runs"):
        html.write_report([], tmp_path / "report.html")
    methods = [series.load(make_run("a"))]
    with pytest.raises(
        UserError, match="format 'pdf' is unknown; expected some of html, md"
    ):
        html.write_report(methods, tmp_path / "report.html", formats=("pdf",))
    with pytest.raises(
        UserError, match="report.md; expected a name that ends in .html"
    ):
        html.write_report(methods, tmp_path / "report.md")
    with pytest.raises(UserError, match="replicas is -1"):
        html.write_report(methods, tmp_path / "report.html", replicas=-1)
    with pytest.raises(UserError, match="'tset'; expected one of validation, cal"):
        html.write_report(methods, tmp_path / "report.html", "tset", 0)
    assert not (tmp_path / "report.html").exists()
