"""The tasks of both studies: relabelling (E2), and one opinion in four domains (E1)."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hypelora_jax.errors import UserError

from . import attributes, draws, holdouts, wordings
from .attributes import Attribute, Sentence
from .holdouts import Form
from .sentences import SPLITS
from .wordings import Wording, Wordings

DOMAIN_LEAST = 200  # sentences of each class in a domain that is left out
E1_SIZES = {"train": 1600, "calibration": 200, "validation": 300, "test": 600}
# How each domain is called; the last name is not for training.
E1_NAMES = {
    "movie_reviews": (
        "film review",
        "movie review",
        "film critic's text",
        "film verdict",
    ),
    "amazon": ("product review", "customer's review", "shop review", "buyer's report"),
    "nyt": ("newspaper", "press article", "journalist's text", "newspaper column"),
    "tweets": ("tweet", "twitter post", "social media post", "microblog entry"),
}
E1_OPENINGS = (
    "This is a sentence of a {d}.",
    "Think of a {d}.",
    "Taken from a {d}.",
    "The text is part of a {d}.",
    "Kind of text: {d}.",
    "Somebody wrote this in a {d}.",
)


class TaskRows(NamedTuple):
    """A yes/no task: its descriptions, its rows by split, and what is known of it.

    `about` is the entry of about.json, without the wordings and the numbers of rows.
    """

    name: str
    wordings: Wordings
    rows: dict[str, list[dict]]
    about: dict[str, Any]


def relabelling(
    sentences: Sequence[Sentence],
    splits: Mapping[int, str],
    seed: int,
    without_domain: str = "",
    more: bool = False,
    only: Sequence[str] = (),
) -> tuple[list[TaskRows], list[str]]:
    """Return the tasks, and the names of attributes with too few sentences.

    Args:
      splits: the split of each sentence, by id.
      without_domain: a domain whose sentences are in no task but the additional ones of
        the group `domain`, which ask the questions of training about them.
      more: whether to add the attributes that are left out by default, for training.
      only: names of attributes; () takes all.
    """
    inside = [s for s in sentences if s.domain == without_domain]
    pools = _pools([s for s in sentences if s.domain != without_domain], splits)
    other_pools = _pools(inside, splits)
    out, apart, dropped = [], [], []
    for attribute in _chosen(_attributes(sentences, more), only):
        forms = [Form(attribute.name, p) for p in (1, -1)]
        groups = {holdouts.group(form, attribute.threshold) for form in forms}
        sizes = draws.SIZES if groups == {"train"} else draws.HELD_OUT_SIZES
        own = draws.draw(attribute, pools, seed, sizes=sizes)
        if own is None:
            dropped.append(attribute.name)
            continue
        pair = [_task(attribute, form, own, seed) for form in forms]
        out += pair
        there = draws.draw(attribute, other_pools, seed, least=DOMAIN_LEAST)
        if there is not None:
            trained = [task for task in pair if task.about["group"] == "train"]
            apart += [_in_domain(t, attribute, there, without_domain) for t in trained]
    return out + apart, dropped


def _chosen(some: list[Attribute], only: Sequence[str]) -> list[Attribute]:
    named = {attribute.name: attribute for attribute in some}
    if wrong := [name for name in only if name not in named]:
        raise UserError(
            f"there is no attribute {wrong[0]!r}; expected some of {', '.join(named)}"
        )
    return [named[name] for name in only or named]


def _attributes(sentences: Sequence[Sentence], more: bool) -> list[Attribute]:
    median = float(np.median([s.spread for s in sentences]))
    words = holdouts.WORDS + holdouts.WORDS_INSIDE + holdouts.WORDS_OUTSIDE
    ratings = holdouts.RATINGS + holdouts.RATINGS_INSIDE + holdouts.RATINGS_OUTSIDE
    return [
        *attributes.facts(more),
        *attributes.domains(),
        *attributes.opinions(median),
        *(attributes.words_above(n) for n in sorted(words)),
        *(attributes.rating_above(t) for t in sorted(ratings)),
    ]


def _pools(some: Sequence[Sentence], splits: Mapping[int, str]) -> draws.Pools:
    return {name: [s for s in some if splits[s.id] == name] for name in SPLITS}


def _task(attribute: Attribute, form: Form, own: draws.Draw, seed: int) -> TaskRows:
    rng = np.random.default_rng([seed, zlib.crc32(form.name.encode())])
    group = holdouts.group(form, attribute.threshold)
    about = {
        "attribute": attribute.name,
        "kind": attribute.kind,
        "polarity": form.polarity,
        "threshold": attribute.threshold,
        "group": group,
        "negation": form.other.name,
        "counterpart": form.other.name if group.endswith("combinations") else None,
        "attainable": own.attainable(form.polarity),
    }
    texts = wordings.wordings(attribute.phrases, form.polarity, rng)
    rows = draws.records(attribute, form.polarity, own)
    return TaskRows(form.name, texts, rows, about)


def _in_domain(
    task: TaskRows, attribute: Attribute, own: draws.Draw, domain: str
) -> TaskRows:
    """Return a trained task on the sentences of the domain that is left out."""
    polarity, negation = task.about["polarity"], task.about["negation"]
    both = holdouts.group(Form(attribute.name, -polarity), attribute.threshold)
    about = task.about | {
        "group": "domain",
        "negation": f"{negation}.{domain}" if both == "train" else None,
        "counterpart": task.name,
        "attainable": own.attainable(polarity),
    }
    rows = draws.records(attribute, polarity, own)
    return TaskRows(f"{task.name}.{domain}", task.wordings, rows, about)


def one_domain_out(
    sentences: Sequence[Sentence], splits: Mapping[int, str], seed: int, domain: str
) -> list[TaskRows]:
    """Return four tasks, a positive opinion in each domain, of which one is held out.

    Sentences whose mean rating is 0 are left out.
    """
    (positive, *_) = attributes.opinions(0)
    out = []
    for name, called in E1_NAMES.items():
        pools = _pools([s for s in sentences if s.domain == name and s.mean], splits)
        own = draws.draw(positive._replace(name=name), pools, seed, sizes=E1_SIZES)
        assert own is not None  # each domain has hundreds of both classes
        about = {
            "attribute": "positive",
            "kind": "opinion",
            "polarity": 1,
            "threshold": None,
            "group": "domain" if name == domain else "train",
            "negation": None,
            "counterpart": None,
            "attainable": own.attainable(1),
        }
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        texts = _opened(wordings.wordings(positive.phrases, 1, rng), called, rng)
        out.append(TaskRows(name, texts, draws.records(positive, 1, own), about))
    return out


def _opened(own: Wordings, called: Sequence[str], rng: np.random.Generator) -> Wordings:
    """Return wordings after a kind of text, which has a new name in `unseen_noun`."""

    def opened(one: Wording, names: Sequence[str]) -> Wording:
        opening = str(rng.choice(E1_OPENINGS)).format(d=rng.choice(names))
        return one._replace(text=f"{opening} {one.text}")

    return Wordings(
        tuple(opened(one, called[:-1]) for one in own.seen),
        tuple(opened(one, called[:-1]) for one in own.unseen_verb),
        tuple(opened(one, called[-1:]) for one in own.unseen_noun),
        tuple(opened(one, called[:-1]) for one in own.unseen_template),
    )
