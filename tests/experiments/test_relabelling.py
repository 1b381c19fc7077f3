"""The data of the relabelling benchmark, drawn from the real sentences."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from relabelling import (
    __main__,
    attributes,
    draws,
    holdouts,
    nonsense,
    sentences,
    tasks,
    wordings,
)
from relabelling.phrases import THING, having, pairs

from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import sources
from hypelora_jax.data.tables import Table
from hypelora_jax.errors import UserError
from hypelora_jax.interop import base

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "calibration", "validation", "test")


class Written:
    """A folder that the command wrote."""

    def __init__(self, folder: Path):
        self.folder = folder
        listed = yaml.safe_load((folder / "tasks.yaml").read_text("utf-8"))
        self.set, self.defaults = listed["tasks"], listed["defaults"]
        self.about = json.loads((folder / "about.json").read_text("utf-8"))["tasks"]
        lines = (folder / "sentences.jsonl").read_text("utf-8").splitlines()
        self.sentences = {row["id"]: row for row in map(json.loads, lines)}

    def rows(self, name, split):
        path = self.folder / f"data/{name}/{split}.jsonl"
        return [json.loads(x) for x in path.read_text("utf-8").split("\n") if x]

    def group(self, *names):
        return {n: a for n, a in self.about.items() if a["group"] in names}


def write(folder, **changed):
    args = {
        "seed": 0,
        "without_domain": "",
        "more": False,
        "e1": "",
        "only": "",
    } | changed
    __main__.run(Namespace(output=str(folder), **args))
    return Written(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def read():
    return sentences.read()


def test_counts(made):
    sizes = {g: len(made.group(g)) for g in {a["group"] for a in made.about.values()}}
    assert sizes["train"] >= 60
    assert sizes["combinations"] >= 12 <= sizes["validation_combinations"]
    assert sizes["thresholds_inside"] >= 8 <= sizes["thresholds_outside"]
    assert sizes["attributes"] >= 8
    for kind in ("threshold-rating", "threshold-length"):
        assert (
            len({a["threshold"] for a in made.about.values() if a["kind"] == kind}) > 7
        )
    trained = set(made.group("train"))
    for name, about in made.about.items():
        both = {name, about["negation"]} <= trained
        assert len(made.rows(name, "test")) == (64 if both else 160)
        assert len(made.rows(name, "train")) >= 400


def test_half_of_each_split_is_yes(made):
    for name, about in made.about.items():
        for split in SPLITS:
            labels = [row["label"] for row in made.rows(name, split)]
            assert labels.count("yes") == labels.count("no") == len(labels) / 2
            assert len(labels) == about["rows"][split]
            assert len(labels) <= 2 * min(about["attainable"].values())


def test_no_task_trains_on_a_sentence_of_another_split(made):
    for name in made.about:
        for split in SPLITS:
            rows = made.rows(name, split)
            found = {made.sentences[row["id"]]["split"] for row in rows}
            assert found == {split}
            assert len({row["id"] for row in rows}) == len(rows)
            assert all(made.sentences[r["id"]]["text"] == r["text"] for r in rows)
    texts = [re.sub(r"\W+", "", s["text"].lower()) for s in made.sentences.values()]
    assert len(set(texts)) == len(texts)


def test_negation_has_the_same_rows_with_flipped_labels(made):
    flip = {"yes": "no", "no": "yes"}
    for name, about in made.about.items():
        assert made.about[about["negation"]]["negation"] == name
        for split in ("train", "test"):
            pair = (made.rows(n, split) for n in (name, about["negation"]))
            for own, other in zip(*pair, strict=True):
                assert own["id"] == other["id"]
                assert own["label"] == flip[other["label"]]
                if "share" in own:
                    assert own["share"] + other["share"] == pytest.approx(1)


def test_labels_follow_from_the_sentences(made):
    def rows(name):
        found = made.rows(name, "test")
        return [(made.sentences[r["id"]], r["label"] == "yes", r) for r in found]

    assert all(yes == (s["words"] > 12) for s, yes, _ in rows("words_above_12"))
    assert all(yes == (s["mean"] <= -1) for s, yes, _ in rows("not_rating_above_-1"))
    assert all(yes == (s["domain"] == "nyt") for s, yes, _ in rows("nyt"))
    assert all(yes == ("," not in s["text"]) for s, yes, _ in rows("not_comma"))
    assert all(yes == (abs(s["mean"]) > 1.5) for s, yes, _ in rows("strong"))
    for s, _, row in rows("rating_above_2"):
        votes = [r > 2 for r in s["ratings"]] + [r >= 2 for r in s["ratings"]]
        assert row["share"] == pytest.approx(np.mean(votes), abs=1e-4)
        assert row["value"] == pytest.approx(np.mean(s["ratings"]), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("number", "seen at 9", "seen at nine"),
        ("negation", "I don't know", "I know nothingness"),
        ("negation", "No way", "a knot"),
        ("first_person", "What am I?", "what is it, IV?"),
        ("second_person", "That's your job", "yo @you"),
        ("exclamation", "Wow!", "wow"),
        ("quotation", "a 'good' film", "it's the actors' film"),
        ("apostrophe", "it's", "'a'"),
        ("hyphen", "well-known", "well - known"),
        ("mention", "hi @joe", "a @ b"),
        ("emoticon", "ok :)", "ok: (fine)"),
        ("modal", "it'll do", "the willing"),
        ("ing", "a good thing", "the rings"),
        ("word_but", "But why", "butter"),
        ("starts_the", "The film", "then the film"),
        ("ends_period", "It ended.'", "It ended. Really"),
        ("several", "One. Two.", "One, two."),
        ("starts_a", "An owl", "Another owl"),
        ("past", "She didn't go", "hadrons"),
    ],
)
def test_facts_by_hand(name, yes, no):
    (fact,) = [a for a in attributes.facts() if a.name == name]
    own = attributes.Sentence(0, "nyt", "", (1,), 1.0, 0.0, 1, 3)
    assert fact.holds(own._replace(text=yes))
    assert not fact.holds(own._replace(text=no))


def test_wordings(made):
    every = [
        wording["text"]
        for about in made.about.values()
        for some in about["wordings"].values()
        for wording in some
    ]
    assert len(set(every)) == len(every), "two tasks with one description"
    assert all(text == text.strip() and not set("{[|") & set(text) for text in every)
    for about in made.about.values():
        seen = about["wordings"]["seen"]
        assert len(seen) >= 20
        assert len({w["template"] for w in seen if not w["negates"]}) >= 16
        assert len({w["phrase"] for w in seen}) >= 3
        assert len({w["template"] for w in about["wordings"]["unseen_template"]}) >= 4
        assert all(len(some) >= 8 for some in about["wordings"].values())
        negates = {w["negates"] for some in about["wordings"].values() for w in some}
        assert negates == ({False} if about["polarity"] > 0 else {False, True})


def test_one_alternative_is_drawn_each_time():
    rng = np.random.default_rng(0)
    drawn = {wordings._varied("[Say|Tell me] if {ask} [N]", rng) for _ in range(500)}
    nouns = wordings.NOUNS.split("|")
    assert drawn == {f"{v} if {{ask}} {n}" for v in ("Say", "Tell me") for n in nouns}


def test_unseen_wordings_are_new(made):
    every = made.about.values()
    seen = [w for about in every for w in about["wordings"]["seen"]]
    templates, phrases = ({w[k] for w in seen} for k in ("template", "phrase"))
    verbs = {w["phrase"] for about in every for w in about["wordings"]["unseen_verb"]}
    for about in every:
        own, fresh = about["wordings"], about["wordings"]["unseen_template"]
        assert not templates & {w["template"] for w in fresh}
        assert {w["phrase"] for w in own["unseen_verb"]}.isdisjoint(phrases)
        assert {w["phrase"] for w in own["unseen_noun"]}.isdisjoint(phrases | verbs)
        for kind in ("unseen_verb", "unseen_noun"):
            assert templates >= {w["template"] for w in own[kind]}


def test_only_unseen_nouns_are_new_nouns():
    """A new verb has the nouns of training, in both forms."""
    found = having(THING, "a sign|signs", "a mark|marks", "a dot|dots")
    nouns = [{p.split()[-1].removesuffix("s") for p in forms.yes} for forms in found]
    assert nouns == [{"sign", "mark", "it"}, {"sign", "mark"}, {"dot", "it"}]
    assert found.unseen_verb.no[-1] == "is devoid of marks"
    assert "has a dot in it" in found.unseen_noun.yes
    assert set(found.seen.no).isdisjoint(found.unseen_verb.no + found.unseen_noun.no)
    of = pairs(("a", "not a"), ("b", "not b"), ("c", "not c"), ("d", "not d"))
    assert [forms.yes for forms in of] == [("a", "b"), ("c",), ("d",)]
    assert of.unseen_noun.of(-1) == ("not d",) and of.seen.of(1) == ("a", "b")


def test_no_two_attributes_share_a_phrase(read):
    every = [*attributes.facts(more=True), *attributes.domains()]
    every += [*attributes.opinions(1), *map(attributes.rating_above, holdouts.RATINGS)]
    phrases = [p for a in every for forms in a.phrases for some in forms for p in some]
    assert len(set(phrases)) == len(phrases)


def test_held_out_tasks(made):
    train = made.group("train")
    for name in ("combinations", "validation_combinations"):
        group = made.group(name)
        assert all(about["counterpart"] in train for about in group.values())
        signs = [about["polarity"] for about in group.values()]
        assert signs.count(1) == signs.count(-1)
    combos = made.group("combinations", "validation_combinations").values()
    assert len({a["attribute"] for a in combos}) == len(combos)
    trained = {a["attribute"] for a in train.values()}
    apart = made.group("attributes", "thresholds_inside", "thresholds_outside")
    assert trained.isdisjoint(a["attribute"] for a in apart.values())
    for about in apart.values():
        assert made.about[about["negation"]]["group"] == about["group"]
    for about in made.group("thresholds_inside", "thresholds_outside").values():
        known = [a["threshold"] for a in train.values() if a["kind"] == about["kind"]]
        inside = min(known) < about["threshold"] < max(known)
        assert inside == (about["group"] == "thresholds_inside")


def test_the_list_of_tasks(made):
    assert [task["name"] for task in made.set] == list(made.about)
    for task in made.set:
        about = made.about[task["name"]]
        assert task["role"] == ("train" if about["group"] == "train" else "held_out")
        assert re.fullmatch(r"\w[\w.-]*", task["name"])
        told = {k: [w["text"] for w in some] for k, some in about["wordings"].items()}
        assert task["descriptions"] == told["seen"]
        assert task["paraphrases"] == told["unseen_verb"]
        opposite = made.about.get(about["negation"])
        texts = opposite["wordings"]["seen"] if opposite else []
        assert task["negations"] == [w["text"] for w in texts]
        assert all((made.folder / task["data"][split]).exists() for split in SPLITS)
    assert made.defaults["labels"] == {"yes": "yes", "no": "no"}
    paths = {s: str(made.folder / made.set[0]["data"][s]) for s in SPLITS}
    own = made.defaults["data"] | paths
    corpus = sources.load(DataConfig(**own), seed=0)
    assert corpus.task.labels == ("no", "yes")
    assert len(corpus.splits["test"].ids) == made.about["number"]["rows"]["test"]


def test_no_sentence_is_cut(made):
    texts = [s["text"] for s in made.sentences.values()]
    ids = np.arange(len(texts))
    words = base.read_tokenizer(base.resolve("minilm"))
    found = words.encode(Table(ids, texts, None, ids), 32)
    assert found.truncated == 0
    pieces = [s["pieces"] for s in made.sentences.values()]
    assert [len(x) for x in found.ids] == pieces


def test_same_seed_same_bytes(made, tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.relabelling",
        f"--output={tmp_path}/a",
    ]
    env = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "170 tasks of 85 attributes" in done.stdout
    files = sorted(
        p.relative_to(made.folder) for p in made.folder.rglob("*") if p.is_file()
    )
    assert len(files) == 4 * 170 + 3
    for path in files:
        assert (made.folder / path).read_bytes() == (tmp_path / "a" / path).read_bytes()


def test_another_seed_draws_other_splits(read):
    first, again, other = (sentences.splits_of(read, seed) for seed in (0, 0, 1))
    assert first == again != other
    shares = np.unique(list(first.values()), return_counts=True)[1] / len(read)
    np.testing.assert_allclose(
        sorted(shares), sorted(sentences.SPLITS.values()), atol=1e-3
    )


def test_nothing_is_overwritten(made):
    with pytest.raises(UserError, match="is not empty, .*choose another --output"):
        write(made.folder)


def test_a_domain_is_left_out(read):
    splits = sentences.splits_of(read, 0)
    domain = {s.id: s.domain for s in read}
    found, dropped = tasks.relabelling(read, splits, 0, "nyt")
    assert {"nyt", "politics"} <= set(dropped)
    names = {task.name: task for task in found}
    groups = {task.about["group"] for task in found}
    assert groups >= {"domain", "train", "combinations"}
    for task in found:
        used = {domain[row["id"]] for rows in task.rows.values() for row in rows}
        assert (used == {"nyt"}) == (task.about["group"] == "domain")
        assert ("nyt" in used) == (task.about["group"] == "domain")
        if task.about["group"] == "domain":
            trained = names[task.about["counterpart"]]
            assert trained.wordings == task.wordings
            assert trained.about["group"] == "train"
            assert task.about["negation"] in (None, *names)
            labels = [row["label"] for row in task.rows["test"]]
            assert labels.count("yes") == len(labels) / 2 >= 30
    assert sum(task.about["group"] == "domain" for task in found) >= 40
    assert "number.nyt" in names and "not_number.nyt" not in names


def test_more_attributes_train(read):
    splits = sentences.splits_of(read, 0)
    few, many = (tasks.relabelling(read, splits, 0, more=m)[0] for m in (False, True))
    names = {task.name for task in few}
    added = [task for task in many if task.name not in names]
    assert len(added) >= 24
    assert {task.about["group"] for task in added} == {"train"}
    assert [task for task in many if task.name in names] == few, "the others stay"


def test_one_opinion_in_four_domains(tmp_path):
    written = write(tmp_path / "e1", e1="amazon")
    groups = {name: about["group"] for name, about in written.about.items()}
    assert groups.pop("amazon") == "domain"
    assert groups == dict.fromkeys(("movie_reviews", "nyt", "tweets"), "train")
    for name, about in written.about.items():
        assert len(about["wordings"]["seen"]) >= 20
        for row in written.rows(name, "test"):
            sentence = written.sentences[row["id"]]
            assert sentence["domain"] == name
            assert sentence["mean"] != 0
            assert (row["label"] == "yes") == (sentence["mean"] > 0)
    texts = [w["text"] for a in written.about.values() for w in a["wordings"]["seen"]]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("flag", ["e1", "without-domain"])
def test_unknown_domain(capsys, flag):
    with pytest.raises(SystemExit):
        __main__.parser().parse_args(["--output=a", f"--{flag}=films"])
    assert "'films' (choose from 'movie_reviews', " in capsys.readouterr().err


def test_rare_attributes_are_left_out(read):
    splits = sentences.splits_of(read, 0)
    pools = {name: [s for s in read if splits[s.id] == name] for name in SPLITS}
    (fact,) = [a for a in attributes.facts() if a.name == "word_but"]
    rare = fact._replace(holds=lambda s: "zebra" in s.text)
    assert draws.draw(rare, pools, 0) is None
    assert (
        draws.draw(rare._replace(holds=lambda s: "zebra" not in s.text), pools, 0)
        is None
    )
    assert draws.draw(fact, pools, 0).counts[0] > 1000


@pytest.mark.parametrize(
    ("phrase", "asked"),
    [
        ("contains a comma", "does the sentence contain a comma"),
        ("is not a tweet", "is the sentence not a tweet"),
        ("was posted", "was the sentence posted"),
        ("has no comma", "does the sentence have no comma"),
        ("never uses it", "does the sentence never use it"),
        ("never was printed", "was the sentence never printed"),
        ("expresses joy", "does the sentence express joy"),
        ("goes beyond 9 words", "does the sentence go beyond 9 words"),
        ("does without it", "does the sentence do without it"),
        ("does not lack it", "is it so that the sentence does not lack it"),
        ("carries a comma", "does the sentence carry a comma"),
        ("closes with a dot", "does the sentence close with a dot"),
    ],
)
def test_a_phrase_as_a_question(phrase, asked):
    assert wordings.question(phrase) == asked


def test_nonsense():
    junk = nonsense()
    assert len(set(junk)) == len(junk) >= 8
    assert all(type(text) is str and text.strip() for text in junk)
    assert nonsense() == junk != nonsense(seed=1)
    assert any(not text.isascii() for text in junk)
