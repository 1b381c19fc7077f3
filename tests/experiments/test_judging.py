"""What the relabelling benchmark says of answers whose numbers are known by hand."""

from types import SimpleNamespace

import judging
import numpy as np
import pytest

from hypelora_jax.config.settings import Settings
from hypelora_jax.data import npz
from hypelora_jax.data.tables import Table, take

ROWS, FIT = 8, 20  # of a task
SURE = 0.9
# Two tasks of each group.
NAMES = [f"{group}_{x}" for group in judging.GROUPS for x in "ab"]
ABOUT: dict[str, dict] = {
    name: {"group": name[:-2], "attribute": name} for name in NAMES
}
for x in "ab":  # both forms of an attribute
    for own, other in (("", "train"), ("validation_", "thresholds_outside")):
        form = {"counterpart": f"{other}_{x}", "attribute": f"{other}_{x}"}
        ABOUT[f"{own}combinations_{x}"] |= form
RATED_BY = ("matched", "static", "shares")
RATED = [NAMES.index(f"attributes_{x}") for x in "ab"]
COMBINATIONS = [NAMES.index(f"combinations_{x}") for x in "ab"]


def towards(label_N, right_N):
    """The probability of yes of answers that are as sure, right or wrong."""
    return np.where(label_N == right_N, SURE, 1 - SURE)


def answers():
    """Answers of one seed: `matched` is right but where the tests say otherwise."""
    task_N = np.repeat(np.arange(len(NAMES)), ROWS)
    label_N = np.tile([True, False], len(task_N) // 2)
    right_N = np.ones(len(task_N), bool)
    right_N[task_N == NAMES.index("thresholds_outside_b")] = False
    right_N[np.flatnonzero(task_N == COMBINATIONS[0])[:2]] = False
    out = dict.fromkeys(judging.CONTROLS, towards(label_N, right_N))
    out["static"] = towards(label_N, np.zeros(len(task_N), bool))
    out["negated"] = 1 - out["matched"] + 0.05
    same_N = task_N == NAMES.index("train_a")
    out["negated"] = np.where(same_N, out["matched"], out["negated"])
    fit_label_N = np.tile([True, False], FIT)
    order_N = np.tile(np.arange(FIT), 2)
    fit = {
        "fit_unseen_verb": towards(fit_label_N, order_N >= 2),  # 18 of 20
        "fit_unseen_noun": towards(fit_label_N, order_N >= 2),
        "fit_unseen_template": towards(fit_label_N, order_N >= 5),  # 15 of 20
        "fit_label": fit_label_N,
        "fit_task": np.repeat([0, 1], FIT),
    }
    distance_WK = np.zeros((4, len(NAMES)))
    distance_WK[0, COMBINATIONS] = 1
    distance_WK[3] = 1  # of unseen templates
    share_N = np.full(len(task_N), np.nan)
    share_N[np.isin(task_N, RATED)] = np.where(label_N, 0.75, 0)[:ROWS].tolist() * 2
    share_N[task_N == NAMES.index("train_b")] = 0.5
    outside = [NAMES.index(f"thresholds_outside_{x}") for x in "ab"]
    out["oracle"] = np.where(np.isin(task_N, outside), towards(label_N, True), np.nan)
    own = {"label": label_N, "task": task_N, "share": share_N, "distance": distance_WK}
    return {**own, **out, **fit}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What is said of three seeds."""
    folder = tmp_path_factory.mktemp("answers")
    done = [folder / f"{seed}.npz" for seed in range(3)]
    for file in done[:2]:
        npz.write(file, answers())
    npz.write(done[2], {**answers(), "oracle": np.full(len(NAMES) * ROWS, np.nan)})
    return judging.judge(done, ABOUT)


def exactly(x):
    return {n: pytest.approx(x, abs=1e-12) for n in ("value", "low", "high")}


def test_groups_have_their_own_tasks(found):
    assert found["seeds"] == 3 and found["groups"].keys() == {*judging.GROUPS}
    for group in ("train", "thresholds_inside", "attributes"):
        one = found["groups"][group]
        assert one["tasks"] == 2 and {*judging.CONTROLS} < one.keys()
        assert one["matched"]["accuracy"] == exactly(1)
        assert one["matched"]["nll"] == exactly(-np.log(SURE))
        assert one["matched"]["brier"] == exactly(0.02)
        assert one["static"]["accuracy"] == exactly(0)
        assert one["matched"]["ece"]["value"] == pytest.approx(0.1)
        margin = found["margins"][group]
        assert margin["static"]["accuracy"] == exactly(1)
        assert margin["static"]["nll"] == exactly(np.log(0.1 / 0.9))
        assert margin["junk"]["nll"] == exactly(0) and "matched" not in margin
    own = found["groups"]["combinations"]["matched"]
    assert own["accuracy"]["value"] == pytest.approx(14 / 16)
    assert own["ece"]["value"] == pytest.approx(0.9 - 14 / 16)
    nll = -(14 * np.log(0.9) + 2 * np.log(0.1)) / 16
    assert own["nll"]["value"] == pytest.approx(nll)


def test_seeds_of_a_task_are_one_cluster(found):
    """One task right, one wrong: a replica of two is all wrong one time in four."""
    own = found["groups"]["thresholds_outside"]["matched"]["accuracy"]
    assert own == {"value": pytest.approx(0.5), "low": 0, "high": 1}


def test_distances_are_means_over_the_tasks_of_a_group(found):
    """Those of the matched wording, which `answers` sets for the combinations."""
    wanted = dict.fromkeys(judging.GROUPS, 0.0) | {"combinations": 1.0}
    assert found["distance"] == wanted


def wrong_at(own, task, rows):
    """Answers of which some rows of a task are wrong."""
    at = np.flatnonzero(own["task"] == NAMES.index(task))[rows]
    matched = own["matched"].copy()
    matched[at] = 1 - matched[at]
    return own | {"matched": matched}


def intervals_of(folder, seeds, about=ABOUT):
    done = [folder / f"own_{k}.npz" for k in range(len(seeds))]
    for file, own in zip(done, seeds, strict=True):
        npz.write(file, own)
    return judging.judge(done, about)["groups"]["thresholds_inside"]["matched"]


def test_more_seeds_with_the_same_answers_do_not_narrow_an_interval(tmp_path):
    one = wrong_at(answers(), "thresholds_inside_a", [0, 3, 4, 5])
    once = intervals_of(tmp_path, [one])["accuracy"]
    assert once == intervals_of(tmp_path, [one] * 4)["accuracy"]
    assert once["low"] < once["value"] == 0.75 < once["high"]


def test_seeds_are_drawn(tmp_path):
    """All rows of one of two seeds are wrong: a replica has 0, 1 or 2 of it."""
    none = answers()
    for x in "ab":
        none = wrong_at(none, f"thresholds_inside_{x}", np.arange(ROWS))
    own = intervals_of(tmp_path, [answers(), none])["accuracy"]
    assert own == {"value": 0.5, "low": 0, "high": 1}


def test_both_forms_of_an_attribute_are_drawn_together(tmp_path):
    """Two forms that are right on the same sentences are no more than one of them."""
    one = answers()
    for x in "ab":
        one = wrong_at(one, f"thresholds_inside_{x}", [0, 1])
    names = {f"thresholds_inside_{x}": {"attribute": "x"} for x in "ab"}
    about = {name: own | names.get(name, {}) for name, own in ABOUT.items()}
    together = intervals_of(tmp_path, [one], about)["accuracy"]
    apart = intervals_of(tmp_path, [one])["accuracy"]
    wide = together["high"] - together["low"]
    assert wide > 1.1 * (apart["high"] - apart["low"])


def test_oracles_are_compared_on_their_tasks(found):
    """They and one of the two tasks of `matched` are right, and static is wrong."""
    own = found["oracle"]
    assert own["oracle"]["accuracy"] == exactly(1) and own["share"]["value"] == 0.5
    assert own["static"]["accuracy"] == exactly(0)
    line = "(matched - static) / (oracle - static), accuracy: 0.5000 ["
    assert line in judging.to_markdown(found)


def test_without_oracles_nothing_is_said_of_them(tmp_path):
    none = np.full(len(NAMES) * ROWS, np.nan)
    npz.write(tmp_path / "0.npz", {**answers(), "oracle": none})
    found = judging.judge([tmp_path / "0.npz"], ABOUT)
    assert found["oracle"] is None and "oracle" not in judging.to_markdown(found)


def test_held_out_forms_are_compared_with_trained_ones(found):
    own = found["counterparts"]
    assert own["combinations"]["trained"]["accuracy"] == exactly(1)
    gap = own["combinations"]["difference"]["accuracy"]
    assert gap["value"] == pytest.approx(-2 / 16) and gap["low"] < gap["high"] == 0
    # one of the two counterparts is always wrong
    gap = own["validation_combinations"]["difference"]["accuracy"]
    assert gap == {"value": pytest.approx(0.5), "low": 0, "high": 1}
    assert "| combinations | 0.8750 [" in judging.to_markdown(found)


def test_each_unseen_task_is_told_by_itself(found):
    """Training tasks are not; the confidence is that of the wording asked."""
    told = found["tasks"]
    assert {name[:-2] for name in told} == {*judging.GROUPS} - {"train"}
    assert told["thresholds_outside_b"]["accuracy"] == 0
    assert told["combinations_a"]["accuracy"] == 0.75  # 6 of 8 rows
    assert all(x["confidence"] == pytest.approx(SURE) for x in told.values())


def test_the_flip_is_of_each_task(found):
    for group in ("attributes", "combinations"):
        assert found["flip"][group]["gap"] == pytest.approx(0.05)
        assert found["flip"][group]["correlation"] == pytest.approx(-1)
    # one of its tasks answers the negation like the task: |2 p - 1| and 1
    assert found["flip"]["train"]["gap"] == pytest.approx((0.05 + 0.8) / 2)
    assert found["flip"]["train"]["correlation"] == pytest.approx(0, abs=1e-9)


def test_temperatures_are_those_of_unseen_wordings(found):
    """Of answers of .9, 51 of 60 are right; 36 of 40 near ones, 15 of 20 distant."""
    told = found["temperature"]
    one = np.log(9) / np.log(51 / 9)
    assert found["temperatures"] == pytest.approx([one] * 3)
    p = 9 ** (1 / one) / (1 + 9 ** (1 / one))
    for name, sure, by in (("single", p, 1e-6), ("by_distance", 0.75, 2e-3)):
        nll = -(14 * np.log(sure) + 2 * np.log(1 - sure)) / 16
        assert told[name]["nll"]["value"] == pytest.approx(nll, abs=by)
        assert told[name]["accuracy"]["value"] == pytest.approx(14 / 16)


def test_raters_of_unseen_tasks_are_the_truth(found):
    """A rater says yes with .75 where the answer is .9, and never where it is .1."""
    told = found["raters"]
    assert told["tasks"] == 2  # not the one of training
    value = {name: {m: x["value"] for m, x in told[name].items()} for name in RATED_BY}
    own = value["matched"]
    assert own["accuracy"] == pytest.approx((0.75 + 1) / 2)
    nll = -(0.75 * np.log(0.9) + 0.25 * np.log(0.1) + np.log(0.9)) / 2
    assert own["nll"] == pytest.approx(nll)
    brier = (0.75 * 2 * 0.1**2 + 0.25 * 2 * 0.9**2 + 2 * 0.1**2) / 2
    assert own["brier"] == pytest.approx(brier)
    assert own["ece"] == pytest.approx(0.9 - 1.75 / 2)
    assert value["static"]["accuracy"] == pytest.approx(1 - 1.75 / 2)
    assert told["shares"]["ece"] == exactly(0)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / 2
    assert value["shares"]["nll"] == pytest.approx(entropy)


def test_no_raters_no_table(tmp_path):
    none = np.full(len(NAMES) * ROWS, np.nan)
    npz.write(tmp_path / "0.npz", {**answers(), "share": none})
    found = judging.judge([tmp_path / "0.npz"], ABOUT)
    assert found["raters"] is None and "raters" not in judging.to_markdown(found)


def test_the_short_form_and_the_page_have_these_groups(found):
    assert {*judging.SHORT.values()} < {*found["groups"]}
    page = judging.to_markdown(found)
    assert page.count("### ") == len(judging.GROUPS) + 4  # and four other tables
    assert "### combinations: 2 tasks, 3 seeds" in page
    rows = [line for line in page.splitlines() if line.startswith("| static |")]
    assert len(rows) == len(judging.GROUPS) + 1
    assert rows[0].endswith("| 1.0000 [1.0000, 1.0000] |")


def test_first_rows_of_each_task_are_balanced_and_those_of_its_negation():
    task_N = np.array([1, 0, 1, 1, 0, 0, 1, 0])
    label_N = np.array([1, 1, 1, 0, 1, 0, 0, 0])
    text = [f"{k}" for k in range(8)]
    table = Table(np.arange(8), text, None, label_N, task=task_N)
    assert judging._first(table, 2).tolist() == [1, 5, 0, 3]
    assert judging._first(table._replace(label=1 - label_N), 2).tolist() == [1, 5, 0, 3]
    assert judging._first(table, 0).tolist() == [*range(8)]
    assert judging._first(table, 100).tolist() == [1, 4, 5, 7, 0, 2, 3, 6]
    both = judging._joined([table, take(table, judging._first(table, 2))])
    assert both.text == [*text, "1", "5", "0", "3"]
    assert both.task.tolist()[8:] == [0, 0, 1, 1]


def test_shuffled_is_a_trained_task_of_another_attribute():
    names = ["a", "not_a", "b", "c"]
    about = {name: {"attribute": name[-1]} for name in names}
    trained = np.array([0, 1, 2])
    rng = np.random.default_rng(0)
    drawn = [judging._other_attribute(names, about, trained, rng) for _ in range(40)]
    seen = [{int(k) for k in each} for each in np.transpose(drawn)]
    assert seen == [{2}, {2}, {0, 1}, {0, 1, 2}]


def test_distances_are_to_descriptions_that_train():
    vectors = [np.array([[1.0, 0], [0, 2]]), np.array([[-1.0, 0]])]
    tasks = SimpleNamespace(names=("a", "b"), held_out=(False, True))
    arrays = SimpleNamespace(choices={"condition": vectors})
    session = SimpleNamespace(task_set=tasks, tasks=arrays, settings=Settings())
    fitted = SimpleNamespace(session=session)
    asked = np.array([[0, 1.0], [-3.0, 0]])  # the second is like the one held out
    worded = {"matched": asked, "unseen_verb": -asked, "unseen_template": 2 * asked}
    worded["unseen_noun"] = 3 * asked[::-1]
    found = judging._distance(fitted, worded)
    np.testing.assert_allclose(found, [[0, 1], [1, 0], [1, 0], [0, 1]], atol=1e-12)
