"""Attributes of a sentence: facts of its text, its domain, and what raters said.

An attribute makes two yes/no tasks, one for it and one for its negation. Facts are
visible to a tokenizer that does not know capital letters; facts.yaml lists them.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from . import phrases
from .phrases import Phrases, pairs

Kind = Literal["fact", "opinion", "domain", "threshold-length", "threshold-rating"]
VERBS = {"thing": phrases.THING, "topic": phrases.TOPIC}
STRONG = 1.5  # an opinion is strong if its mean rating is further than this from 0


class Sentence(NamedTuple):
    """A sentence of a domain, its ratings of -4..4, and what is computed from them.

    `spread` is the standard deviation of the ratings, `words` counts words between
    spaces, and `pieces` MiniLM's word pieces with [CLS] and [SEP].
    """

    id: int
    domain: str
    text: str
    ratings: tuple[int, ...]
    mean: float
    spread: float
    words: int
    pieces: int


class Attribute(NamedTuple):
    """What a yes/no task asks for.

    `holds` is the label. `share` is the share of raters who would say yes, if raters
    decide. A threshold compares `value` with `threshold`; both are None for others.
    """

    name: str
    kind: Kind
    holds: Callable[[Sentence], bool]
    phrases: Phrases
    share: Callable[[Sentence], float] | None = None
    value: Callable[[Sentence], float] | None = None
    threshold: float | None = None


def facts(more: bool = False) -> list[Attribute]:
    """Return the facts of facts.yaml, with those of `more: true` if `more` is true."""
    rows = yaml.safe_load((Path(__file__).parent / "facts.yaml").read_text("utf-8"))
    return [_fact(row) for row in rows if more or not row.get("more")]


def _fact(row: Mapping[str, Any]) -> Attribute:
    if "word" in row:
        pattern, own = word_pattern(row["word"]), phrases.having_word(row["word"])
    else:
        pattern = row.get("pattern") or word_pattern(row["words"])
        if "pairs" in row:
            own = pairs(*row["pairs"])
        else:
            own = phrases.having(VERBS[row["verbs"]], *row["nouns"])
    found = re.compile(pattern).search
    return Attribute(row["name"], "fact", lambda s: bool(found(s.text.lower())), own)


def word_pattern(words: str) -> str:
    """Return the pattern of any of some words; "*ing" is any word with that ending."""
    each = [re.escape(w).replace(r"\*", r"\w+") for w in words.split()]
    return rf"(?<![\w'@#])(?:{'|'.join(each)})(?!\w)"


DOMAINS = {
    "movie_reviews": pairs(
        ("is from a film review", "is not from a film review"),
        ("was written by a film critic", "was not written by a film critic"),
        ("reviews something shown in cinemas", "reviews nothing shown in cinemas"),
        ("comes from a movie review", "comes from no movie review"),
        ("assesses a film", "does not assess a film"),
        ("belongs to a movie review", "does not belong to a movie review"),
        ("stems from a film review", "does not stem from a film review"),
        ("is part of a critique of a picture", "is no part of a critique of a picture"),
    ),
    "amazon": pairs(
        ("is from a product review", "is not from a product review"),
        ("was written by a customer of a shop", "was not written by a customer"),
        ("reviews goods bought online", "does not review goods bought online"),
        ("comes from a shopper", "comes from no shopper"),
        ("assesses a thing for sale", "does not assess a thing for sale"),
        ("belongs to feedback on an article", "does not belong to such feedback"),
        ("stems from a product review", "does not stem from a product review"),
        ("is a buyer's verdict on an item", "is not a buyer's verdict on an item"),
    ),
    "nyt": pairs(
        ("is from a newspaper", "is not from a newspaper"),
        ("was written by a journalist", "was not written by a journalist"),
        ("belongs to an editorial", "does not belong to an editorial"),
        ("comes from a daily paper", "comes from no daily paper"),
        ("appears in the news", "never appears in the news"),
        ("was printed in the press", "never was printed in the press"),
        ("stems from a newspaper", "does not stem from a newspaper"),
        ("is part of a daily paper's column", "is no part of a daily paper's column"),
    ),
    "tweets": pairs(
        ("is a tweet", "is not a tweet"),
        ("was posted on twitter", "was not posted on twitter"),
        ("is a post on social media", "is no post on social media"),
        ("was sent to followers", "was not sent to followers"),
        ("appears on social media", "never appears on social media"),
        ("comes from a microblog", "does not come from a microblog"),
        ("was sent out on twitter", "was not sent out on twitter"),
        ("is a short online status message", "is not a short online status message"),
    ),
}
POSITIVE = pairs(
    ("expresses a positive opinion", "does not express a positive opinion"),
    ("is favourable", "is not favourable"),
    ("speaks well of its subject", "fails to speak well of its subject"),
    ("sounds pleased", "does not sound pleased"),
    ("shows a good mood", "lacks any good mood"),
    ("voices a positive view", "voices no positive view"),
    ("comes across as pleased", "does not come across as pleased"),
    ("conveys a positive opinion", "conveys no positive opinion"),
    ("has a cheerful ring", "lacks a cheerful ring"),
)
NEGATIVE = pairs(
    ("expresses a negative opinion", "does not express a negative opinion"),
    ("is unfavourable", "is not unfavourable"),
    ("speaks ill of its subject", "never speaks ill of its subject"),
    ("sounds displeased", "does not sound displeased"),
    ("shows a bad mood", "is without any bad mood"),
    ("voices a negative view", "voices no negative view"),
    ("comes across as displeased", "does not come across as displeased"),
    ("conveys a negative opinion", "conveys no negative opinion"),
    ("has a gloomy ring", "lacks a gloomy ring"),
)
STRONGLY = pairs(
    ("expresses a strong feeling", "does not express a strong feeling"),
    ("is emotionally intense", "is not emotionally intense"),
    ("takes a clear side", "fails to take a clear side"),
    ("has an extreme tone", "has no extreme tone"),
    ("leaves readers in no doubt of its mood", "leaves readers in doubt of its mood"),
    ("shows intense feeling", "shows no intense feeling"),
    ("comes across as extreme", "does not come across as extreme"),
    ("conveys a strong feeling", "does not convey a strong feeling"),
    ("bears heavy emotion", "bears no heavy emotion"),
)
DISPUTED = pairs(
    ("is disputed among readers", "is undisputed among readers"),
    ("makes readers disagree", "does not make readers disagree"),
    ("is rated differently by different people", "is not rated differently by people"),
    ("divides its raters", "fails to divide its raters"),
    ("gets ratings that vary a lot", "gets ratings that hardly vary"),
    ("splits its readers", "does not split its readers"),
    ("meets with disagreement", "meets with no disagreement"),
    ("is contested among readers", "is not contested among readers"),
    ("causes a split of judgements", "causes no split of judgements"),
)


def domains() -> list[Attribute]:
    """Return whether a sentence is from a domain, for each of the four."""
    return [
        Attribute(name, "domain", lambda s, name=name: s.domain == name, own)
        for name, own in DOMAINS.items()
    ]


def opinions(median: float) -> list[Attribute]:
    """Return what raters thought; the ratings of a disputed sentence spread more.

    Args:
      median: the median spread of ratings.
    """
    return [
        Attribute(
            "positive", "opinion", lambda s: s.mean > 0, POSITIVE, _share_above(0)
        ),
        Attribute(
            "negative",
            "opinion",
            lambda s: s.mean < 0,
            NEGATIVE,
            lambda s: 1 - _share_above(0)(s),
        ),
        Attribute(
            "strong",
            "opinion",
            lambda s: abs(s.mean) > STRONG,
            STRONGLY,
            lambda s: float(np.mean(np.abs(s.ratings) > STRONG)),
        ),
        Attribute("disputed", "opinion", lambda s: s.spread > median, DISPUTED),
    ]


def words_above(n: int) -> Attribute:
    """Return whether a sentence has more than n words."""
    return Attribute(
        f"words_above_{n}",
        "threshold-length",
        lambda s: s.words > n,
        phrases.length(n),
        None,
        lambda s: s.words,
        n,
    )


def rating_above(t: float) -> Attribute:
    """Return whether the mean rating of a sentence is above t."""
    return Attribute(
        f"rating_above_{t:g}",
        "threshold-rating",
        lambda s: s.mean > t,
        phrases.rating(t),
        _share_above(t),
        lambda s: round(s.mean, 4),
        t,
    )


def _share_above(t: float) -> Callable[[Sentence], float]:
    """Return the share of ratings above t; a rating of t counts half."""

    def share(s: Sentence) -> float:
        return float(np.mean((np.sign(np.asarray(s.ratings) - t) + 1) / 2))

    return share
