"""Verb phrases that say that a sentence has an attribute, or that it does not.

A verb phrase completes "The sentence ...". The phrases of an attribute come in two
sets: those of training, and unseen ones, whose nouns no description in training has.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Phrases(NamedTuple):
    """Verb phrases of an attribute, and of its negation, seen in training and unseen.

    A phrase of `no` or `unseen_no` is true of a sentence without the attribute.
    """

    yes: tuple[str, ...]
    no: tuple[str, ...]
    unseen_yes: tuple[str, ...]
    unseen_no: tuple[str, ...]

    def seen(self, polarity: int) -> tuple[str, ...]:
        """Return the phrases of training for polarity 1 (yes) or -1 (no)."""
        return self.yes if polarity > 0 else self.no

    def unseen(self, polarity: int) -> tuple[str, ...]:
        """Return the phrases that are not for training, for polarity 1 or -1."""
        return self.unseen_yes if polarity > 0 else self.unseen_no


class Verbs(NamedTuple):
    """Patterns of verb phrases: {one} is a noun with its article, {many} a plural."""

    yes: tuple[str, ...]
    no: tuple[str, ...]


# What a text contains: signs, endings and kinds of words.
THING = Verbs(
    yes=(
        "contains {one}",
        "has {one} in it",
        "includes {one}",
        "uses {one}",
        "makes use of {many}",
        "comes with {one}",
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
    ),
)
# What a text speaks of.
TOPIC = Verbs(
    yes=(
        "mentions {one}",
        "refers to {one}",
        "talks about {many}",
        "brings up {many}",
        "speaks of {one}",
        "says something about {many}",
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
    ),
)
# One word, which has no plural.
WORD = Verbs(
    yes=(
        "contains {one}",
        "has {one} in it",
        "includes {one}",
        "uses {one}",
        "makes use of {one}",
    ),
    no=(
        "does not contain {one}",
        "lacks {one}",
        "fails to include {one}",
        "does without {one}",
        "never uses {one}",
        "leaves out {one}",
        "is without {one}",
        "is free of {one}",
    ),
)
_OF_WORD = (
    "the word {w}",
    'the term "{w}"',
    '"{w}" as a word',
    "the expression {w}",
)


def having(verbs: Verbs, *nouns: str) -> Phrases:
    """Return all phrases of nouns with verbs; those of the last noun are unseen.

    A noun is "a number|numbers": with its article, and as a plural. One form is enough
    if both are equal.
    """
    forms = [(n.split("|")[0], n.split("|")[-1]) for n in nouns]

    def filled(patterns: tuple[str, ...], some: Sequence) -> tuple[str, ...]:
        return tuple(p.format(one=o, many=m) for o, m in some for p in patterns)

    seen, unseen = forms[:-1], forms[-1:]
    return Phrases(
        filled(verbs.yes, seen),
        filled(verbs.no, seen),
        filled(verbs.yes, unseen),
        filled(verbs.no, unseen),
    )


def having_word(word: str) -> Phrases:
    """Return the phrases of a text that contains a certain word."""
    return having(WORD, *(noun.format(w=word) for noun in _OF_WORD))


def pairs(*rows: tuple[str, str]) -> Phrases:
    """Return phrases written out as (yes, no); the last row is unseen."""
    yes, no = zip(*rows, strict=True)
    return Phrases(yes[:-1], no[:-1], yes[-1:], no[-1:])


def length(n: int) -> Phrases:
    """Return the phrases of a text of more than n words."""
    return pairs(
        (f"has more than {n} words", f"does not have more than {n} words"),
        (f"is longer than {n} words", f"is no longer than {n} words"),
        (f"consists of over {n} words", f"consists of at most {n} words"),
        (f"goes beyond {n} words", f"does not go beyond {n} words"),
        (f"exceeds {n} words", f"fails to exceed {n} words"),
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
    )
