import io

import numpy as np
import pytest
from matplotlib import image

from hypelora_jax.calibration import calibrators, metrics
from hypelora_jax.report import curves, figures, html, reliability, series
from hypelora_jax.report.series import Series
from hypelora_jax.run import results
from hypelora_jax.run.paths import Run
from hypelora_jax.run.predictions import Predictions
from hypelora_jax.run.results import Results


def panel_of_split(title, logits, labels, calibrator=None, train_temperature=1.0):
    own = Results(
        title,
        {},
        {},
        {"": Predictions(logits, labels)},
        calibrator,
        train_temperature=train_temperature,
    )
    return reliability.panel_of(Series(title, (own,)), "")


def pixels(data):
    return image.imread(io.BytesIO(data))


def test_figures_are_drawn(make_run, tmp_path):
    run = results.read(Run.open(make_run("three", classes=3)))
    html.write_report(
        [Series(run.name, (run,))], tmp_path / "x.html", formats=("png",), replicas=0
    )
    for name in ("reliability", "risk_coverage", "curves"):
        drawn = pixels((tmp_path / f"x_{name}.png").read_bytes())
        assert drawn.shape[0] > 300 and drawn.std() > 0.05


def test_reliability_says_both_errors(make_run):
    method = series.load(make_run("lora"))
    panel = reliability.panel_of(method, "validation")
    top, below = reliability.diagram([panel]).axes
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    held = method.seeds[0].metrics["validation"]
    assert labels == [
        f"as trained: ECE {held['ece']:.3f}",
        f"T = {method.seeds[0].calibrator.temperature:.3g}: "
        f"ECE {held['calibrated']['ece']:.3f}",
    ]
    before, _, after = (step.get_data().values for step in below.patches)
    assert before.sum() == pytest.approx(1) and after.sum() == pytest.approx(1)
    assert before[-1] > after[-1]  # a temperature above 1 takes confidence away


def test_the_diagram_of_a_split_is_drawn_from_the_files_of_the_run(make_run):
    folder = make_run("lora")
    reliability.write_diagram(Run.open(folder), "test")
    panel = reliability.panel_of(series.load(folder), "test")
    drawn = (folder / "report" / "reliability_test.png").read_bytes()
    assert drawn == figures.png(reliability.diagram([panel]))
    assert len(panel.stages) == 2


def test_points_of_a_diagram_are_those_of_the_metric():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(400, 3)), draw.integers(0, 3, 400)
    logits[:40] = np.log([0.5, 0.3, 0.2])  # on the edge of a bin
    panel = panel_of_split("x", logits, labels)
    assert len(panel.stages) == 1
    binned = reliability._binned(panel.stages[0], 10)
    wanted = metrics.reliability(calibrators.softmax(logits), labels)
    seen = wanted[2] > 0
    for got, want in zip((binned[0], binned[1], binned[4]), wanted, strict=True):
        np.testing.assert_allclose(got, want[seen], rtol=0, atol=1e-12)
    assert np.all(binned.low <= binned.accuracy + 1e-12)
    assert np.all(binned.accuracy <= binned.high + 1e-12)


def test_without_a_calibrator_there_is_one_stage(make_run):
    run = results.read(Run.open(make_run("lora")))
    held = run.predictions["test"]
    for state in (None, calibrators.Identity(), calibrators.Temperature(1.0)):
        assert len(panel_of_split("x", *held[:2], state).stages) == 1
    learned = panel_of_split("x", *held[:2], None, train_temperature=1.5)
    probs = calibrators.softmax(held.logits.astype(np.float64), 1.5)
    np.testing.assert_allclose(learned.stages[0].confidence, probs.max(axis=1))
    assert panel_of_split("x", held.logits[:, :1], held.labels) is None


def test_the_band_is_the_bootstrap_of_examples():
    """The quick draw of patterns against resampling the examples one by one."""
    draw = np.random.default_rng(1)
    bin_N, hit_N = draw.integers(0, 3, 300), draw.random(300) < 0.7
    low, high = reliability.band(bin_N, hit_N, np.arange(300), 4, replicas=4000)
    shares = np.full((4000, 3), np.nan)
    for r in range(4000):
        at = draw.integers(0, 300, 300)
        for m in range(3):
            shares[r, m] = hit_N[at][bin_N[at] == m].mean()
    wanted = np.quantile(shares, [0.025, 0.975], axis=0)
    # an end moves by about .1 standard deviations between two sets of 4,000 replicas
    assert np.abs(low[:3] - wanted[0]).max() < 0.012
    assert np.abs(high[:3] - wanted[1]).max() < 0.012
    assert np.isnan(low[3]) and np.isnan(high[3])


def test_seeds_of_one_example_are_drawn_together():
    """Copies of the same predictions add nothing: the band stays as wide."""
    draw = np.random.default_rng(2)
    bin_N, hit_N = draw.integers(0, 2, 200), draw.random(200) < 0.6
    one = reliability.band(bin_N, hit_N, np.arange(200), 2, replicas=2000)
    three = reliability.band(
        np.tile(bin_N, 3), np.tile(hit_N, 3), np.tile(np.arange(200), 3), 2, 2000
    )
    np.testing.assert_allclose(one, three, atol=0.012)
    apart = reliability.band(
        np.tile(bin_N, 3), np.tile(hit_N, 3), np.arange(600), 2, 2000
    )
    assert np.all(apart[1] - apart[0] < 0.75 * (three[1] - three[0]))


def test_a_bin_that_cannot_be_resampled_has_a_wilson_bar():
    confidence = np.r_[np.full(4, 0.55), np.full(100, 0.65), np.full(100, 0.95)]
    hit = np.r_[True, False, True, True, np.arange(100) < 60, np.full(100, True)]
    stage = reliability.Stage("x", confidence, hit, np.arange(204), 0.1)
    binned = reliability._binned(stage, 10)
    assert binned.drawn_again.tolist() == [False, True, False]
    # Wilson at z = 1.959964: 3 of 4, and 100 of 100
    assert binned.low[0] == pytest.approx(0.300642, abs=1e-5)
    assert binned.high[0] == pytest.approx(0.954413, abs=1e-5)
    assert binned.low[2] == pytest.approx(100 / (100 + 1.959964**2), abs=1e-6)
    panel = reliability.Panel("x", (stage,), 2)
    limits = reliability.limits_of([panel])
    assert limits.lowest == pytest.approx(0.2) and limits.highest == 100 / 204


def test_a_series_is_told_by_line_and_marker_without_colour(make_run):
    method = series.load(make_run("lora"))
    top, below = reliability.diagram([reliability.panel_of(method, "test")]).axes
    handles = top.get_legend().legend_handles
    assert len({h.get_marker() for h in handles}) == 2
    assert len({h.get_linestyle() for h in handles}) == 2
    marks = [figures.mark(i) for i in range(6)]
    assert len({str(m["ls"]) for m in marks}) == len({m["marker"] for m in marks}) == 6
    assert len({str(figures.mark(i)) for i in range(24)}) == 24


def test_risk_at_by_hand():
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1])  # right, wrong, right, wrong
    risks = metrics.risk_at_coverage(probs, labels, np.array([0.25, 0.5, 0.75, 1]))
    np.testing.assert_allclose(risks, [0, 1 / 2, 1 / 3, 2 / 4])
    tied = np.tile([0.8, 0.2], (4, 1))
    for order in ([0, 0, 1, 1], [1, 0, 1, 0]):
        risks = metrics.risk_at_coverage(
            tied, np.array(order), np.array([0.25, 0.5, 1])
        )
        np.testing.assert_allclose(risks, 0.5)
    rounded = metrics.risk_at_coverage(probs, labels, np.array([0.1, 0.26]))
    np.testing.assert_allclose(rounded, [0, 1 / 2])


def test_risk_and_coverage_of_methods(make_run, make_seeds):
    methods = [series.load(make_run("a")), series.load(make_seeds("b", [0.1, 0.9]))]
    (axes,) = curves.risk_coverage(methods, "test").axes
    assert [line.get_label() for line in axes.lines] == ["a", "b, 2 seeds"]
    held = series.examples(methods[0].seeds[0], "test")
    error = 1 - metrics.accuracy(held.final, held.labels)
    x, y = axes.lines[0].get_data()
    assert x[0] == pytest.approx(20 / 600) and x[-1] == 1
    assert y[-1] == pytest.approx(error)
    assert len(axes.collections) == 1  # the range of the seeds
    bare = Series("bare", (Results("bare", {}, {}),))
    assert curves.risk_coverage([bare], "test") is None


def test_curves_mark_the_chosen_epoch(make_run):
    top, below = curves.training([series.load(make_run("lora"))]).axes
    lines = {line.get_label(): line for line in top.lines}
    assert list(lines["chosen"].get_xdata()) == [2, 2]
    assert list(lines["validation NLL"].get_xdata()) == [1, 2, 3, 4]
    assert lines["train loss"].get_xdata()[-1] == 4
    np.testing.assert_allclose(below.lines[0].get_ydata(), [0.02, 0.04, 0.06, 0.08])


def test_the_train_loss_is_a_running_mean_over_its_points(make_run):
    method = series.load(make_run("lora"))
    top, _ = curves.training([method]).axes
    lines = {line.get_label(): line for line in top.lines}
    points, mean = lines["train loss"], lines["mean of 11 points"]
    loss = [r["loss"] for r in method.seeds[0].curve if r["split"] == "train"]
    assert len(loss) == 100 and points.get_linestyle() == "None"
    np.testing.assert_array_equal(points.get_ydata(), loss)
    np.testing.assert_array_equal(points.get_xdata(), mean.get_xdata())
    for at in (5, 50, 94):  # the middle of 11 points
        wanted = np.mean(loss[at - 5 : at + 6])
        assert mean.get_ydata()[at] == pytest.approx(wanted)
    assert mean.get_ydata()[0] == pytest.approx(np.mean(loss[:6]))


def test_a_running_mean_by_hand():
    np.testing.assert_allclose(curves.running_mean([1, 2, 6, 1], 3), [1.5, 3, 3, 3.5])
    np.testing.assert_array_equal(curves.running_mean([4.0, 2.0], 1), [4, 2])
    np.testing.assert_allclose(curves.running_mean([4.0, 2.0], 9), [3, 3])
    assert len(curves.running_mean([], 1)) == 0
    windows = [curves.window(n) for n in (0, 1, 3, 9, 41, 413, 10_000)]
    assert windows == [1, 1, 3, 3, 7, 21, 101]


def test_curves_of_seeds_have_a_star_each(make_seeds):
    method = series.load(make_seeds("lora", [0.1, 0.2]))
    late = method.seeds[1]._replace(best_step=75)
    method = method._replace(seeds=(method.seeds[0], late))
    top, below = curves.training([method]).axes
    for axes, wanted in ((top, [0.55, 0.57]), (below, [0.04, 0.06])):
        stars = [line for line in axes.lines if line.get_marker() == "*"]
        assert [line.get_xdata()[0] for line in stars] == [2, 3]
        np.testing.assert_allclose([line.get_ydata()[0] for line in stars], wanted)
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    named = ["train loss", "mean of 11 points", "validation NLL", "chosen"]
    assert labels == named


def test_curves_of_several_runs_share_their_axes(make_run):
    low = results.read(Run.open(make_run("low")))
    rows = [{**row, "ece": 0.5} for row in low.curve if "ece" in row]
    high = low._replace(curve=rows)
    methods = [Series("low", (low,)), Series("high", (high,))]
    figure = curves.training(methods)
    apart = curves.training(methods[:1], curves.highest(methods))
    assert apart.axes[1].get_ylim() == figure.axes[1].get_ylim()
    for axes in figure.axes:
        bottom, top = axes.get_ylim()
        drawn = [line for line in axes.lines if len(set(line.get_xdata())) > 1]
        highest = max(max(line.get_ydata()) for line in drawn)
        assert bottom == 0 and highest < top
    assert figure.axes[1].get_ylim() == figure.axes[3].get_ylim()


def test_a_grid_has_three_panels_in_a_row():
    seen = []
    figure = figures.grid([seen.append] * 7, (1.0, 2.0))
    assert len(figure.axes) == 14 and len(seen) == 7
    width, height = figure.get_size_inches()
    assert width == pytest.approx(0.3 + 3 * figures.WIDTH)
    assert height == pytest.approx(3 * 3.9)
