"""Answers and tables of the relabelling benchmark (experiments/relabel.py)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from hypelora_jax.calibration import calibrators
from hypelora_jax.data import npz
from hypelora_jax.data.tables import Table, take
from hypelora_jax.evaluate import evaluation
from hypelora_jax.evaluate.audit import auditing, controls, paired
from hypelora_jax.evaluate.fitted import Fitted, tokenised
from hypelora_jax.report.metric_tables import Table as Rows
from hypelora_jax.report.metric_tables import cell
from hypelora_jax.report.metric_tables import to_markdown as markdown
from hypelora_jax.run import predictions
from hypelora_jax.train.conditioning import task_conditions
from hypelora_jax.train.conditioning.nearness import nearest_of
from hypelora_jax.train.session import load_corpus

SPLITS = ("test", "held_out_test")
FIT_SPLIT = "validation"  # of training tasks, for temperatures
GROUPS = (
    "train",
    "thresholds_inside",
    "thresholds_outside",
    "combinations",
    "validation_combinations",
    "attributes",
)
# Groups as the page names them.
TITLES = {
    "train": "trained",
    "thresholds_inside": "thresholds inside",
    "thresholds_outside": "thresholds outside",
    "combinations": "combinations",
    "validation_combinations": "combinations to choose by",
    "attributes": "of unseen attributes",
}
# Groups of the short form by the name that it has there.
SHORT = {
    "paraphrases": "train",
    "thresholds": "thresholds_inside",
    "combinations": "combinations",
    "attributes": "attributes",
}
WORDINGS = ("seen", "unseen_verb", "unseen_noun", "unseen_template")
METRICS = ("accuracy", "nll", "ece")
CONTROLS = ("matched", *WORDINGS[1:], "static", "shuffled", "junk", "nearest")
CONTROLS += ("negated", "description_only")
# Kinds of temperature by what the page calls them.
TEMPERATURES = {
    "single": "one temperature",
    "by_distance": "growing with the distance",
}


class Runs(NamedTuple):
    """Folders of runs: one that reads descriptions, and one of a single adapter or "".

    `oracles` are runs of single tasks, by task.
    """

    text: str
    static: str = ""
    oracles: Mapping[str, str] = {}


def answer(
    runs: Runs, about: Mapping[str, Any], rows: int, seed: int, file: epath.Path
) -> None:
    """Write the probabilities of yes of all controls, and labels and tasks, to a file.

    Args:
      runs: what answers.
      about: what is known of each task (relabel.known).
      rows: most sentences of a task, as many of each class; 0 for all.
      seed: decides which wordings are asked.
      file: the `.npz` to write.
    """
    fitted = evaluation.open_fitted(runs.text)
    corpus = load_corpus(fitted.session.settings)
    table = _joined([corpus.splits[name] for name in SPLITS])
    at = _first(table, rows)
    table = take(table, at)
    yes = fitted.session.task.labels.index("yes")
    worded = _worded(fitted, about, seed)
    data, out = tokenised(fitted, table), {}
    for name, conditions in worded.items():
        logging.info("answering with %s", name)
        out[name] = auditing.answered(fitted, data, {"condition": conditions})[:, yes]
    if runs.static:
        out["static"] = _evaluated(runs.static)[at]
    out["oracle"] = _by_oracles(runs.oracles, about, table)
    told = auditing.without_text(fitted, corpus.splits["train"], table)
    out["description_only"] = told["description_only"][0][:, yes]
    validation = corpus.splits[FIT_SPLIT]
    validation = take(validation, _first(validation, rows))
    for name in WORDINGS[1:]:
        own = auditing.answered(
            fitted, tokenised(fitted, validation), {"condition": worded[name]}
        )
        out[f"fit_{name}"] = own[:, yes]
    label = {"label": table.label == yes, "fit_label": validation.label == yes}
    task = {"task": table.task, "fit_task": validation.task}
    own = {"share": _shares(table, about), "distance": _distance(fitted, worded)}
    npz.write(file, {**out, **label, **task, **own})


def _shares(table: Table, about: Mapping[str, Any]) -> np.ndarray:
    """Return the share of raters who say yes to each row, NaN if none were asked."""
    known = [about[name].get("shares", {}) for name in about]
    pairs = zip(table.task, table.text, strict=True)
    return np.array([known[k][text] if known[k] else np.nan for k, text in pairs])


def _evaluated(workdir: str) -> np.ndarray:
    """Return the probability of yes of a run on SPLITS, which it has evaluated."""
    fitted = evaluation.open_fitted(workdir)
    some = [predictions.read(fitted.run.predictions_file(name)) for name in SPLITS]
    return _probability(fitted, np.concatenate([one.logits for one in some]))


def _alone(workdir: str, table: Table) -> np.ndarray:
    """Return the probability of yes of a run that has one adapter."""
    fitted = evaluation.open_fitted(workdir)
    return _probability(fitted, fitted.answer(tokenised(fitted, table)).logits)


def _probability(fitted: Fitted, logits_NY: np.ndarray) -> np.ndarray:
    """Return the calibrated probability of yes (N,)."""
    yes = fitted.session.task.labels.index("yes")
    return calibrators.apply(fitted.calibrator, logits_NY.astype(np.float64))[:, yes]


def _by_oracles(
    oracles: Mapping[str, str], about: Mapping[str, Any], table: Table
) -> np.ndarray:
    """Return the probability of yes of a task's oracle, NaN for rows of other tasks.

    The oracle of a task says the opposite for its negation.
    """
    names, out = list(about), np.full(len(table.label), np.nan)
    for name, folder in oracles.items():
        for task in (name, about[name]["negation"]):
            at = np.flatnonzero(table.task == names.index(task))
            p_N = _alone(folder, take(table, at))
            out[at] = p_N if task == name else 1 - p_N
    return out


def _joined(tables: Sequence[Table]) -> Table:
    return Table(
        np.concatenate([t.ids for t in tables]),
        [text for t in tables for text in t.text],
        None,
        np.concatenate([t.label for t in tables]),
        task=np.concatenate([t.task for t in tables]),
    )


def _first(table: Table, rows: int) -> np.ndarray:
    """Return the first rows of each task, as many of each class, in their order.

    They are the same sentences for both forms of an attribute.
    """
    if not rows:
        return np.arange(len(table.label))
    of_tasks = []
    for k in np.unique(table.task):
        own = np.flatnonzero(table.task == k)
        labels = [own[table.label[own] == y] for y in np.unique(table.label[own])]
        of_tasks.append(np.sort(np.concatenate([x[: rows // 2] for x in labels])))
    return np.concatenate(of_tasks)


def _worded(
    fitted: Fitted, about: Mapping[str, Any], seed: int
) -> dict[str, np.ndarray]:
    """Return the vectors (K, C) that each control asks with."""
    session = fitted.session
    names, tasks, arrays = session.task_set.names, session.task_set, session.tasks
    condition = session.settings.condition

    def one(k: int, kind: str) -> str:
        some = about[names[k]]["wordings"][kind]
        return some[(k + seed) % len(some)]["text"]

    every = range(len(names))
    number = {name: k for k, name in enumerate(names)}
    texts = {kind: [[one(k, kind)] for k in every] for kind in WORDINGS}
    opposite = [number[about[name]["negation"]] for name in names]
    texts["negated"] = [[one(k, "seen")] for k in opposite]
    junk = controls.NONSENSE
    texts["junk"] = [[junk[(k + seed) % len(junk)]] for k in every]
    out = {
        kind: np.concatenate(task_conditions.of_descriptions(condition, some))
        for kind, some in texts.items()
    }
    out["matched"] = out.pop("seen")
    trained = np.flatnonzero(~np.asarray(tasks.held_out))
    rng = np.random.default_rng(seed)
    out["shuffled"] = out["matched"][_other_attribute(names, about, trained, rng)]
    near = controls.nearest({"condition": arrays.conditions["condition"]}, trained)
    out["nearest"] = out["matched"][near]
    return out


def _other_attribute(
    names: Sequence[str],
    about: Mapping[str, Any],
    trained: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return for each task a training task of another attribute."""
    attribute = [about[name]["attribute"] for name in names]
    return np.array(
        [rng.choice([k for k in trained if attribute[k] != own]) for own in attribute]
    )


def _distance(fitted: Fitted, worded: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the distance of each wording to the nearest training description.

    It is 1 minus the cosine, (4, K) in the order of WORDINGS. It is 0 for the seen
    wording of a task that trains.
    """
    session = fitted.session
    parts = session.settings.condition.parts
    nearest = nearest_of(session.task_set, session.tasks.choices["condition"], parts)
    asked = [worded["matched"], *(worded[name] for name in WORDINGS[1:])]
    return np.array([[nearest(x).distance for x in vectors] for vectors in asked])


def judge(done: Sequence[epath.Path], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of all groups over seeds, with the intervals of `_draws`."""
    seeds = [npz.read(file) for file in done]
    names = list(about)
    joined = {name: np.concatenate([one[name] for one in seeds]) for name in seeds[0]}
    joined |= _units(seeds, about)
    values, tempered = _tempered(seeds)
    task_N, label_N = joined["task"], joined["label"].astype(int)
    groups, margins = {}, {}
    for group in GROUPS:
        wanted = [k for k, name in enumerate(names) if about[name]["group"] == group]
        at = np.isin(task_N, wanted)
        weight_RN = _draws(joined, at)
        rows = {
            name: paired.rows(_two(joined[name][at]), label_N[at])
            for name in CONTROLS
            if name in joined
        }
        groups[group] = {n: paired.metrics(x, weight_RN) for n, x in rows.items()}
        groups[group]["tasks"] = len(wanted)
        margins[group] = {
            n: paired.difference(rows["matched"], x, weight_RN)
            for n, x in rows.items()
            if n != "matched"
        }
    return {
        "seeds": len(seeds),
        "groups": groups,
        "margins": margins,
        "flip": _flip(joined, about),
        "distance": _distances(seeds, about),
        "temperatures": values,
        "temperature": _temperature(joined, tempered, about),
        "raters": _of_raters(joined, tempered, about),
        "oracle": _of_oracles(joined),
        "counterparts": _of_counterparts(joined, about),
        "tasks": _of_tasks(joined, about),
    }


def _units(
    seeds: Sequence[Mapping[str, np.ndarray]], about: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return what the bootstrap draws: attribute, number of the sentence, and seed."""
    attributes = [own["attribute"] for own in about.values()]
    number_K = np.unique(attributes, return_inverse=True)[1]
    places = []
    for own in seeds:
        place_N = np.zeros(len(own["task"]), int)
        for k in np.unique(own["task"]):
            at = np.flatnonzero(own["task"] == k)
            place_N[at] = np.arange(len(at))
        places.append(place_N)
    return {
        "attribute": np.concatenate([number_K[own["task"]] for own in seeds]),
        "place": np.concatenate(places),
        "seed": np.repeat(np.arange(len(seeds)), [len(x) for x in places]),
    }


def _draws(joined: Mapping[str, np.ndarray], at: np.ndarray) -> np.ndarray:
    """Count how often each replica draws the rows `at`, (R, N).

    A replica draws attributes, sentences of each, and seeds. Both forms of an attribute
    have the same sentences in the same order, so they are drawn together, as are the
    answers of all seeds to a sentence.
    """
    pairs = np.stack([joined["attribute"][at], joined["place"][at]])
    unit, of_N = np.unique(pairs, axis=1, return_inverse=True)
    weight_RU = paired.draws(unit[0])
    seeds, seed_N = np.unique(joined["seed"][at], return_inverse=True)
    share, rng = np.full(len(seeds), 1 / len(seeds)), np.random.default_rng(1)
    drawn_RS = rng.multinomial(len(seeds), share, len(weight_RU))
    out = weight_RU[:, of_N.reshape(-1)]
    out *= drawn_RS[:, seed_N]
    return out


def _of_counterparts(
    joined: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Compare each combination with the other form of its attribute, which trained.

    Both have the same sentences in the same order, so a difference comes from the form
    and not from the attribute.
    """
    names, out = list(about), {}
    for group in ("combinations", "validation_combinations"):
        own = [k for k, name in enumerate(names) if about[name]["group"] == group]
        other = [names.index(about[names[k]]["counterpart"]) for k in own]
        at, there = (
            np.concatenate([np.flatnonzero(joined["task"] == k) for k in some])
            for some in (own, other)
        )
        unseen, trained = (
            paired.rows(_two(joined["matched"][i]), joined["label"][i].astype(int))
            for i in (at, there)
        )
        weight_RN = _draws(joined, at)
        out[group] = {
            "trained": paired.metrics(trained, weight_RN),
            "difference": paired.difference(unseen, trained, weight_RN),
        }
    return out


def _of_tasks(
    joined: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Return accuracy and mean confidence of `matched` on each task out of training."""
    out = {}
    for k, (name, own) in enumerate(about.items()):
        at = joined["task"] == k
        if own["group"] not in GROUPS[1:]:
            continue
        p_N, label_N = joined["matched"][at], joined["label"][at].astype(bool)
        accuracy = np.mean((p_N > 0.5) == label_N)
        confidence = np.mean(np.maximum(p_N, 1 - p_N))
        out[name] = {"accuracy": float(accuracy), "confidence": float(confidence)}
    return out


def _of_oracles(joined: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Compare with adapters that were trained on the task; seeds without do not count.

    `share` is (matched - static) / (oracle - static) of accuracies.
    """
    at = np.flatnonzero(~np.isnan(joined["oracle"]))
    if not len(at):
        return None
    weight_RN = _draws(joined, at)
    label_N = joined["label"][at].astype(int)
    names = ("matched", "static", "oracle")
    rows = {n: paired.rows(_two(joined[n][at]), label_N) for n in names}
    hit_NK = np.stack([rows[n].score_NK[:, 0] for n in names], axis=1)
    ones = np.ones((1, len(at)))
    matched_R, static_R, oracle_R = (np.concatenate([ones, weight_RN]) @ hit_NK).T
    share_R = (matched_R - static_R) / (oracle_R - static_R)
    low, high = np.quantile(share_R[1:], (0.025, 0.975))
    share = {"value": float(share_R[0]), "low": float(low), "high": float(high)}
    return {
        **{n: paired.metrics(x, weight_RN) for n, x in rows.items()},
        "share": share,
    }


def _two(p_N: np.ndarray) -> np.ndarray:
    return np.stack([1 - p_N, p_N], axis=1)


def _flip(joined: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean |p(d) + p(not d) - 1| and the mean correlation of logits by group."""
    out = {}
    for group in GROUPS:
        gaps, correlations = [], []
        for k, name in enumerate(about):
            at = joined["task"] == k
            if about[name]["group"] != group or not at.any():
                continue
            p, q = joined["matched"][at], joined["negated"][at]
            gaps.append(np.mean(np.abs(p + q - 1)))
            correlations.append(np.corrcoef(_logit(p), _logit(q))[0, 1])
        out[group] = {
            "gap": float(np.mean(gaps)),
            "correlation": float(np.nanmean(correlations)),
        }
    return out


def _distances(
    seeds: Sequence[Mapping[str, np.ndarray]], about: Mapping[str, Any]
) -> dict[str, float]:
    """Return by group how far the descriptions asked are from those of training.

    It is the mean distance of `matched` to the nearest training description.
    """
    mean_K = np.mean([own["distance"][0] for own in seeds], axis=0)
    groups = np.array([own["group"] for own in about.values()])
    return {group: float(mean_K[groups == group].mean()) for group in GROUPS}


def _logit(p_N: np.ndarray) -> np.ndarray:
    p = np.clip(p_N, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)


def _yes(logit_N: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit_N))


def _tempered(
    seeds: Sequence[Mapping[str, np.ndarray]],
) -> tuple[list[float], dict[str, np.ndarray]]:
    """Divide the logits of `matched` by temperatures of training tasks.

    They are fitted on training tasks in unseen wordings: one number, and one that grows
    with the distance of the wording to the nearest description of training.

    Returns:
      The numbers of the seeds, and the probabilities of yes by kind of temperature.
    """
    fit = calibrators.build("temperature").fit
    out: dict[str, list[np.ndarray]] = {kind: [] for kind in TEMPERATURES}
    values = []
    for own in seeds:
        probs = np.concatenate([own[f"fit_{n}"] for n in WORDINGS[1:]])
        distance_WK = own["distance"][1:]
        truth = np.tile(own["fit_label"], len(distance_WK)).astype(int)
        near = np.concatenate([row_K[own["fit_task"]] for row_K in distance_WK])
        state = fit(np.log(np.clip(_two(probs), 1e-12, 1)), truth)
        values.append(float(state.temperature))
        constant, slope = _by_distance(_logit(probs), truth, near)
        away = own["distance"][0][own["task"]]
        logit = _logit(own["matched"])
        for kind, by in zip(
            TEMPERATURES, (values[-1], np.exp(constant + slope * away)), strict=True
        ):
            out[kind].append(_yes(logit / by))
    return values, {kind: np.concatenate(some) for kind, some in out.items()}


def _temperature(
    joined: Mapping[str, np.ndarray],
    tempered: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Compute the metrics of unseen combinations, with temperatures and without."""
    held = [k for k, name in enumerate(about) if about[name]["group"] == "combinations"]
    at = np.isin(joined["task"], held)
    weight_RN = _draws(joined, at)
    label_N = joined["label"][at].astype(int)
    every = {"none": joined["matched"], **tempered}
    return {
        name: paired.metrics(paired.rows(_two(p_N[at]), label_N), weight_RN)
        for name, p_N in every.items()
    }


def _of_raters(
    joined: Mapping[str, np.ndarray],
    tempered: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Judge unseen tasks that raters decide; the truth is a rater drawn at random.

    All metrics are expectations over the raters of a row. No answers have a lower NLL
    than the shares themselves.
    """
    unseen = [k for k, name in enumerate(about) if about[name]["group"] != "train"]
    at = np.isin(joined["task"], unseen) & ~np.isnan(joined["share"])
    if not at.any():
        return None
    weight_RN = _draws(joined, at)
    share_N1 = joined["share"][at][:, None]
    every = {"matched": joined["matched"], **tempered}
    every |= {n: joined[n] for n in ("static",) if n in joined}
    out: dict[str, Any] = {"tasks": len(np.unique(joined["task"][at]))}
    for name, p_N in {**every, "shares": joined["share"]}.items():
        two, ones = _two(p_N[at]), np.ones(at.sum(), int)
        yes, no = paired.rows(two, ones), paired.rows(two, 0 * ones)
        mixed = [
            share_N1 * y + (1 - share_N1) * n for y, n in zip(yes, no, strict=True)
        ]
        out[name] = paired.metrics(paired.Rows(*mixed), weight_RN)
    return out


def _by_distance(
    logit_N: np.ndarray, label_N: np.ndarray, distance_N: np.ndarray
) -> np.ndarray:
    """Fit log T = a + b * distance by the loss, on a grid that is refined."""

    def loss(a: float, b: float) -> float:
        z = logit_N / np.exp(a + b * distance_N)
        return float(np.mean(np.logaddexp(0, np.where(label_N == 1, -z, z))))

    return _grid(loss)


def _grid(loss: Callable[[float, float], float]) -> np.ndarray:
    best, width = np.array([0.0, 0.0]), np.array([2.0, 8.0])
    for _ in range(6):
        steps = np.linspace(-1, 1, 9)
        tried = [
            best + width * (x, y)
            for x in steps
            for y in steps
            if best[1] + width[1] * y >= 0
        ]
        best, width = min(tried, key=lambda one: loss(*one)), width / 3
    return best


def overview(found: Mapping[str, Any]) -> list[list[Any]]:
    """Return a row for each group: its name, and accuracies of some controls."""
    rows = []
    for group, own in found["groups"].items():
        matched, others = own["matched"], (*WORDINGS[1:], "static", "shuffled", "junk")
        rest = [own[n]["accuracy"]["value"] for n in others if n in own]
        said = f"{own['tasks']} {TITLES[group]}"
        rows.append([said, matched["accuracy"], matched["nll"]["value"], *rest])
    return rows


def to_markdown(found: Mapping[str, Any]) -> str:
    """Return the tables of `judge` as Markdown."""
    parts = []
    for group, own in found["groups"].items():
        rows = []
        for name in (name for name in CONTROLS if name in own):
            margin = found["margins"][group].get(name)
            last = "" if margin is None else cell(margin["accuracy"])
            cells = tuple(cell(own[name][m]) for m in METRICS)
            rows.append((name, *cells, last))
        title = f"{group}: {own['tasks']} tasks, {found['seeds']} seeds"
        columns = ("answered with", "accuracy", "NLL", "ECE", "matched minus, accuracy")
        parts.append(f"### {title}\n\n{markdown(Rows(title, columns, tuple(rows)))}")
    parts.append(_counterparts_table(found))
    parts.append(_of_flips(found["flip"]))
    parts.append(_of_temperatures(found["temperature"]))
    if found["raters"]:
        parts.append(_raters_table(found["raters"]))
    if found["oracle"]:
        share = cell(found["oracle"]["share"])
        parts.append(f"(matched - static) / (oracle - static), accuracy: {share}\n")
    return "\n".join(parts)


def _counterparts_table(found: Mapping[str, Any]) -> str:
    title = "combinations, and the other forms of their attributes, which trained"
    columns = ("tasks", "accuracy", "accuracy of the other form", "difference")
    rows = [
        (
            group,
            cell(found["groups"][group]["matched"]["accuracy"]),
            cell(own["trained"]["accuracy"]),
            cell(own["difference"]["accuracy"]),
        )
        for group, own in found["counterparts"].items()
    ]
    return f"### {title}\n\n{markdown(Rows(title, columns, tuple(rows)))}"


def _of_flips(flip: Mapping[str, Any]) -> str:
    title = "a description and its negation"
    columns = ("tasks", "mean |p + q - 1|", "correlation of logits")
    rows = [(n, cell(x["gap"]), cell(x["correlation"])) for n, x in flip.items()]
    return f"### {title}\n\n{markdown(Rows(title, columns, tuple(rows)))}"


def _of_temperatures(found: Mapping[str, Any]) -> str:
    title = "combinations, with a temperature of training tasks in unseen wording"
    kinds = {"none": "none", **TEMPERATURES}
    columns = ("temperature", *METRICS)
    rows = [(said, *(cell(found[n][m]) for m in METRICS)) for n, said in kinds.items()]
    return f"### {title}\n\n{markdown(Rows(title, columns, tuple(rows)))}"


def _raters_table(found: Mapping[str, Any]) -> str:
    title = f"{found['tasks']} unseen tasks that raters decide, against their shares"
    kinds = {"matched": "matched", **TEMPERATURES, "static": "static"}
    kinds["shares"] = "the shares themselves"
    names = (*METRICS, "brier")
    rows = [
        (said, *(cell(found[n][m]) for m in names))
        for n, said in kinds.items()
        if n in found
    ]
    columns = ("answered with", "accuracy", "NLL", "ECE", "Brier")
    return f"### {title}\n\n{markdown(Rows(title, columns, tuple(rows)))}"
