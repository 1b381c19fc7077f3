"""Verb phrases that say that a sentence has an attribute, or that it does not.

A verb phrase completes "The sentence ...". The phrases of an attribute come in three
sets: those of training, new verbs with nouns of training, and new nouns, which no
description in training has.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Forms(NamedTuple):
    """Phrases that are true of a sentence with the attribute, and of one without."""

    yes: tuple[str, ...]
    no: tuple[str, ...]

    def of(self, polarity: int) -> tuple[str, ...]:
        """Return the phrases for polarity 1 (yes) or -1 (no)."""
        return self.yes if polarity > 0 else self.no


class Phrases(NamedTuple):
    """Verb phrases of an attribute: seen in training, with a new verb, a new noun."""

    seen: Forms
    unseen_verb: Forms
    unseen_noun: Forms


class Verbs(NamedTuple):
    """Patterns of verb phrases: {one} is a noun with its article, {many} a plural."""

    seen: Forms
    unseen: Forms


# What a text contains: signs, endings and kinds of words.
THING = Verbs(
    seen=Forms(
        yes=(
            "contains {one}",
            "has {one} in it",
            "includes {one}",
            "uses {one}",
            "makes use of {many}",
            "comes with {one}",
            "shows {one}",
            "carries {one}",
            "displays {many}",
        ),
        no=(
            "contains no {many}",
            "does not contain {one}",
            "is free of {many}",
            "lacks {one}",
            "fails to include {one}",
            "does without {many}",
            "has no {many}",
            "never uses {one}",
            "leaves out {many}",
            "shows no {many}",
            "does not carry {one}",
            "avoids {many}",
            "goes without {one}",
        ),
    ),
    unseen=Forms(
        yes=("features {one}", "holds {one}", "employs {many}"),
        no=(
            "features no {many}",
            "does not hold {one}",
            "omits {many}",
            "is devoid of {many}",
        ),
    ),
)
# What a text speaks of.
TOPIC = Verbs(
    seen=Forms(
        yes=(
            "mentions {one}",
            "refers to {one}",
            "talks about {many}",
            "brings up {many}",
            "speaks of {one}",
            "says something about {many}",
            "discusses {many}",
            "alludes to {one}",
            "comments on {many}",
        ),
        no=(
            "does not mention {one}",
            "makes no mention of {many}",
            "never refers to {one}",
            "says nothing about {many}",
            "is silent about {many}",
            "does not talk about {many}",
            "fails to bring up {many}",
            "leaves {many} out",
            "is without any word about {many}",
            "does not discuss {many}",
            "never alludes to {one}",
            "avoids talk of {many}",
            "passes over {many}",
        ),
    ),
    unseen=Forms(
        yes=("touches on {many}", "names {one}", "deals with {many}"),
        no=(
            "does not touch on {many}",
            "never deals with {many}",
            "names no {many}",
            "omits {many} from what it says",
        ),
    ),
)
# One word. It has no plural, so {many} is the word as well.
WORD = Verbs(
    seen=Forms(
        yes=tuple(v for v in THING.seen.yes if v != "comes with {one}"),
        no=(
            "does not contain {one}",
            "lacks {one}",
            "fails to include {one}",
            "does without {one}",
            "never uses {one}",
            "leaves out {one}",
            "is without {one}",
            "is free of {one}",
            "does not show {one}",
            "never carries {one}",
            "avoids {one}",
            "goes without {one}",
        ),
    ),
    unseen=Forms(
        yes=THING.unseen.yes,
        no=(
            "does not feature {one}",
            "never employs {one}",
            "omits {one}",
            "is devoid of {one}",
        ),
    ),
)
_OF_WORD = (
    "the word {w}",
    'the term "{w}"',
    '"{w}" as a word',
    "the expression {w}",
    'the token "{w}"',
)


def having(verbs: Verbs, *nouns: str) -> Phrases:
    """Return all phrases of nouns with verbs; those of the last noun are unseen.

    A noun is "a number|numbers": with its article, and as a plural. One form is enough
    if both are equal.
    """
    forms = [(n.split("|")[0], n.split("|")[-1]) for n in nouns]

    def filled(patterns: Forms, some: Iterable[tuple[str, str]]) -> Forms:
        pairs = list(some)
        yes, no = (
            tuple(p.format(one=o, many=m) for o, m in pairs for p in own)
            for own in patterns
        )
        return Forms(yes, no)

    return Phrases(
        filled(verbs.seen, forms[:-1]),
        filled(verbs.unseen, forms[:-1]),
        filled(verbs.seen, forms[-1:]),
    )


def having_word(word: str) -> Phrases:
    """Return the phrases of a text that contains a certain word."""
    return having(WORD, *(noun.format(w=word) for noun in _OF_WORD))


def pairs(*rows: tuple[str, str]) -> Phrases:
    """Return phrases written out as (yes, no).

    The last row but one has a new verb, and the last one a new noun.
    """
    yes, no = zip(*rows, strict=True)
    forms = [
        Forms(yes[at], no[at]) for at in (slice(-2), slice(-2, -1), slice(-1, None))
    ]
    return Phrases(*forms)


def length(n: int) -> Phrases:
    """Return the phrases of a text of more than n words."""
    return pairs(
        (f"has more than {n} words", f"does not have more than {n} words"),
        (f"is longer than {n} words", f"is no longer than {n} words"),
        (f"consists of over {n} words", f"consists of at most {n} words"),
        (f"goes beyond {n} words", f"does not go beyond {n} words"),
        (f"exceeds {n} words", f"fails to exceed {n} words"),
        (f"runs to over {n} words", f"does not run to over {n} words"),
        (f"comprises over {n} words", f"comprises {n} words at most"),
        (f"counts more than {n} words", f"does not count more than {n} words"),
        (f"has a length above {n} words", f"has a length of {n} words or less"),
    )


def rating(t: float) -> Phrases:
    """Return the phrases of a text whose mean rating is above t, from -4 to 4."""
    said = f"minus {-t:g}" if t < 0 else f"{t:g}"
    return pairs(
        (f"has a mean rating above {t:g}", f"has no mean rating above {t:g}"),
        (f"is rated above {said} on average", f"is not rated above {said} on average"),
        (f"scores more than {t:g} with readers", f"scores {t:g} or less with readers"),
        (f"gets a rating over {said}", f"does not get a rating over {said}"),
        (
            f"reaches an average score higher than {said}",
            f"fails to reach an average score higher than {said}",
        ),
        (f"averages more than {t:g}", f"does not average more than {t:g}"),
        (f"is given a mean above {said}", f"is given no mean above {said}"),
        (f"receives a mean rating above {t:g}", f"receives no mean rating above {t:g}"),
        (f"wins a typical mark over {said}", f"wins no typical mark over {said}"),
    )
