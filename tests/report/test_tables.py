import csv
import io
import json
import re

import rich.console

from hypelora_jax.calibration import calibrators
from hypelora_jax.report import metric_tables, result_tables
from hypelora_jax.report.comparison import Cell, Row
from hypelora_jax.report.series import Series
from hypelora_jax.run import results
from hypelora_jax.run.paths import Run
from hypelora_jax.run.results import Results


def test_before_after_table(make_run):
    views = [
        results.read(Run.open(make_run("a"))),
        results.read(Run.open(make_run("b", seed=1))),
    ]
    views.append(views[0]._replace(name="c", metrics={}))
    table = metric_tables.before_after(views)
    columns = ("run", "calibrator", "MCC", "Accuracy", "NLL", "ECE", "Brier")
    assert table.columns == columns
    assert [row[0] for row in table.rows] == ["a", "", "b", ""]
    held = views[0].metrics["validation"]
    assert table.rows[0][5] == f"{held['ece']:.4f}"
    assert table.rows[1][1] == calibrators.describe(views[0].calibrator)
    assert table.rows[1][1] == f"T = {views[0].calibrator.temperature:.3g}"
    assert table.rows[1][5] == f"{held['calibrated']['ece']:.4f}"


def test_terminal_and_markdown_show_every_cell():
    named = {
        "a|[b]": {"n": 3, "ece": {"value": 0.1, "low": 0.05, "high": 0.2}},
        "c": {"nll": 1.5},
    }
    table = metric_tables.of_metrics("title", named, ("n", "nll", "ece", "mcc"))
    assert metric_tables.to_markdown(table) == (
        "| run | N | NLL | ECE |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| a\\|[b] | 3 | - | 0.1000 [0.0500, 0.2000] |\n"
        "| c | - | 1.5000 | - |\n"
    )
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(metric_tables.to_rich(table))
    text = console.file.getvalue()
    for cell in ("title", "a|[b]", "0.1000 [0.0500, 0.2000]", "1.5000"):
        assert cell in text


def test_a_wide_table_shows_every_cell_in_80_columns():
    names = ("accuracy", "nll", "ece", "brier")
    metrics = {n: {"value": 0.1, "low": 0.05, "high": 0.2} for n in names}
    named = {f"a run with a name that is long, {i}": metrics for i in range(2)}
    table = metric_tables.of_metrics("title", named, names)
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(metric_tables.to_rich(table))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for cell, times in (("a run", 2), ("long,", 2), ("0.1000", 8), ("0.2000]", 8)):
        assert sum(line.count(cell) for line in lines) == times


def test_latex_escapes_and_has_a_cell_for_each_column():
    hard = "\\a_b & 5% of $#{x}~^ <±>"
    rows = ((hard, "1"), ("[x]", "0.5\n[0.4, 0.6]"))
    text = metric_tables.to_latex(
        metric_tables.Table("A_B", ("run", "N"), rows, (1, 2))
    )
    lines = text.splitlines()
    assert r"\caption{A\_B}" in text and r"\begin{tabular}{lr}" in text
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    assert [line for line in body if line == r"\midrule"] == [r"\midrule"] * 2
    cells = [line for line in body if line != r"\midrule"]
    for line in cells:
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == 1
    wanted = r"\textbackslash{}a\_b \& 5\% of \$\#\{x\}\textasciitilde{}"
    wanted += r"\textasciicircum{} $<$$\pm$$>$ & 1 \\"
    assert cells[1:] == [wanted, r"{[x]} & 0.5 [0.4, 0.6] \\"]
    assert text.count(r"\begin{") == text.count(r"\end{") == 2


ROWS = [
    Row("lora", 1, 600, "-", {"nll": Cell(0.5, 0.4, 0.6), "mcc": Cell(0.3)}, {}),
    Row(
        "ours",
        3,
        600,
        "T = 2",
        {"nll": Cell(0.4, 0.35, 0.45, 0.02), "mcc": Cell(0.31)},
        {"nll": Cell(-0.1, -0.2, 0.0, 0.03, 0.0491), "mcc": Cell(0.01)},
    ),
]


def test_table_of_methods():
    table = result_tables.table("test", ROWS)
    assert table.columns == ("method", "calibrator", "N", "MCC", "NLL")
    assert table.rows == (
        ("lora", "-", "600", "0.3000", "0.5000\n[0.4000, 0.6000]"),
        (
            "ours\n3 seeds",
            "T = 2",
            "600",
            "0.3100",
            "0.4000\n± 0.0200\n[0.3500, 0.4500]",
        ),
        ("minus lora", "", "", "+0.0100", "-0.1000\n[-0.2000, +0.0000]\np = 0.049"),
    )
    assert table.sections == (1, 3)
    assert result_tables.p_value(0.0004) == "p < 0.001"


def test_csv_is_tidy_and_in_full_precision():
    third = Row("x", 1, 3, "-", {"nll": Cell(1 / 3, 0.1, 0.7)}, {})
    text = result_tables.to_csv(
        {("test", "as trained"): ROWS, ("test", "calibrated"): [third]}
    )
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 5
    assert float(rows[-1]["value"]) == 1 / 3 and rows[-1]["difference"] == ""
    ours = rows[2]
    assert (ours["split"], ours["stage"], ours["method"]) == (
        "test",
        "as trained",
        "ours",
    )
    assert (ours["seeds"], ours["metric"], ours["spread"]) == ("3", "nll", "0.02")
    ends = [ours[f"difference_{name}"] for name in ("low", "high", "spread")]
    assert ends == ["-0.2", "0.0", "0.03"] and ours["p"] == "0.0491"


def test_the_error_stands_beside_its_noise_floor():
    assert result_tables.checks("title", ROWS) is None
    held = {"ece": Cell(0.02), "ece_noise_floor": Cell(0.018)}
    p = [Cell(0.4), Cell(0.0002), Cell(0.2, values=(0.01, 0.39))]
    rows = [Row("x", 1, 9, "-", {**held, "consistency_p": one}, {}) for one in p]
    table = result_tables.checks("title", rows)
    assert [row[2:] for row in table.rows] == [
        ("0.0200", "0.0180", "0.400", "not to be told from noise"),
        ("0.0200", "0.0180", "< 0.001", "yes"),
        ("0.0200", "0.0180", "0.010 to 0.390", "yes for 1 of 2 seeds"),
    ]
    assert "consistency_p" not in result_tables.to_csv({("a", "b"): rows[2:]})


def _with_sets(name, *coverages):
    runs_of = []
    for coverage in coverages:
        thr = {"coverage": {"value": coverage, "low": 0.8, "high": 0.95}, "size": 1.5}
        held = {
            "wanted": 0.9,
            "n": 600,
            "thr": thr,
            "thr_by_class": {**thr, "empty": 0.1},
        }
        metrics = {"test": {"nll": 0.5, "conformal": held}}
        runs_of.append(Results(name, {}, metrics))
    return Series(name, tuple(runs_of))


def test_table_of_sets():
    bare = Series("bare", (Results("bare", {}, {"test": {"nll": 0.5}}),))
    assert result_tables.sets([bare], "test") is None
    methods = [_with_sets("a", 0.9), bare, _with_sets("b", 0.87, 0.91)]
    table = result_tables.sets(methods, "test")
    assert table.title == "test, conformal sets meant to cover 90 %"
    assert table.columns[:4] == ("method", "sets", "Coverage", "Size")
    assert [row[:4] for row in table.rows] == [
        ("a", "thr", "0.9000 [0.8000, 0.9500]", "1.5000"),
        ("a", "thr by class", "0.9000 [0.8000, 0.9500]", "1.5000"),
        ("b", "thr", "0.8900", "1.5000"),
        ("b", "thr by class", "0.8900", "1.5000"),
    ]
    assert [row[5] for row in table.rows] == ["-", "0.1000", "-", "0.1000"]
    assert table.sections == (2, 4)


def test_all_metrics_are_those_of_the_file_under_their_names(make_run):
    folder = make_run("a")
    held = json.loads((folder / "eval/test/metrics.json").read_text())
    table = metric_tables.every([results.read(Run.open(folder))], "test")
    assert table.columns[:2] == ("metric", "a") and len(table.columns) == 3
    numbers = {k for k, v in held.items() if not isinstance(v, dict)}
    assert {row[0] for row in table.rows} == numbers
    for name, before, after in table.rows:
        raw = held["uncalibrated"].get(name, held[name])
        assert (before, after) == (
            metric_tables.cell(raw),
            metric_tables.cell(held[name]),
        )
