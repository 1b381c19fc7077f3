"""Wordings of a task: a verb phrase in a template, and junk in place of a wording.

A description of training has a template and a verb phrase of training. `unseen_verb`
and `unseen_noun` are new verb phrases in known templates, with known nouns and with new
ones. `unseen_template` are known phrases in new templates.
A negation is worded in two ways: by a phrase ("contains no number") in any template, or
by a template that negates ("It is false that ...") around the phrase of the attribute.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .phrases import Forms, Phrases

# {p} is a phrase, {P} with a capital, {ask} and {Ask} are it as a question.
TEMPLATES = (
    "{Ask}?",
    "Answer yes or no: {ask}?",
    "Tell me this: {ask}?",
    "The sentence {p}.",
    "{P}: yes or no?",
    "A text that {p}.",
    "Is it true that the sentence {p}?",
    "Say yes if the text {p}.",
    "Say yes if this {p}, otherwise say no.",
    "Label: whether this passage {p}",
    "Decide whether the sentence {p}.",
    "yes = the text {p}, no = anything else",
    "Answer yes when the comment {p}.",
    "True or false: the text {p}.",
    "Check that this line {p}.",
    "Mark each text that {p}.",
    "Any sentence which {p} counts as a yes.",
    "A yes means that the passage {p}.",
    "I want to know if this comment {p}.",
    "Would a reader say that the sentence {p}?",
    "Task: spot any text that {p}.",
    "Pick yes for a sentence that {p} and no for any other.",
    "Only a snippet that {p} gets a yes.",
    "Classify the sentence by one statement: it {p}.",
    "Given a short text, judge if it {p}.",
    "A claim about the text is that it {p}. Is the claim right?",
    "Does this hold? The passage {p}.",
    "The condition is that the text {p}.",
    "Respond with yes exactly when the input {p}.",
    "Please verify that the quote {p}.",
    "Someone says that this message {p}. Are they right?",
    "Select a line whenever it {p}.",
    "The sentence must be one that {p}.",
    "Take in any passage which {p}.",
    "We want texts for which this is true: it {p}.",
    "Keep the comment if it {p}, discard it otherwise.",
    "Take texts of this kind, skip the rest: it {p}.",
    "Say yes only if it is true that the quote {p}.",
    "There is truth in saying that the sentence {p}.",
    "Anybody could say that this text {p}.",
    "Hold on to each snippet that {p}.",
    "Is this statement right? The passage {p}.",
    "Yes for the texts of which this holds, no for what remains: it {p}.",
    "Agree with the claim that the comment {p}.",
    "Can it be affirmed that the message {p}?",
    "Decide: does it hold that the passage {p}?",
    "What we look for is a piece of writing that {p}.",
    "Would you agree with me that this remark {p}?",
    "Rule: output yes for whatever {p}.",
    "The question to settle here: {ask}?",
    "Put a line on the yes heap if it {p}, or else on the no heap.",
    "My guess about the text is that it {p}. Correct?",
    "Keep a text in the collection if it {p}.",
)
UNSEEN_TEMPLATES = (
    "Let the answer be yes where the text {p}.",
    "Here is what to test: the sentence {p}.",
    "Flag it whenever the passage {p}.",
    "Could one say that the quote {p}?",
    "Sort the lines into two groups; the yes group has each line that {p}.",
    "I am after every message that {p}.",
    "Judge this statement about the snippet: it {p}.",
    "One point only: {ask}?",
)
NEGATING = (
    "It is false that the sentence {p}.",
    "Say no if the text {p}, and yes otherwise.",
    "Answer yes unless the sentence {p}.",
    "It is not the case that the passage {p}.",
    "Pick out everything except a text that {p}.",
    "no = the text {p}, yes = anything else",
    "Reject a line that {p} and accept any other.",
    "Is it untrue that the comment {p}?",
    "The sentence must not be one that {p}.",
    "Leave out any passage which {p}.",
    "We want texts for which this is false: it {p}.",
    "Discard the comment if it {p}, keep it otherwise.",
    "A yes means that the claim fails: the line {p}.",
    "Skip texts of this kind, take the rest: it {p}.",
    "Say yes only if it is untrue that the quote {p}.",
    "There is no truth in saying that the sentence {p}.",
    "Nobody could say that this text {p}.",
    "Throw away each snippet that {p}.",
    "Any text but one that {p}.",
    "Is this statement false? The passage {p}.",
    "Yes for what remains without the texts of which this holds: it {p}.",
    "Disagree with the claim that the comment {p}.",
    "Everything goes, except for a sentence which {p}.",
    "Can it be denied that the message {p}?",
    "Is it wrong to say that the passage {p}?",
    "Exclude each sentence which {p}.",
    "Give a yes to whatever does not fit this: it {p}.",
    "Anything will do, as long as it is not a text that {p}.",
)
UNSEEN_NEGATING = (
    "Let the answer be no where the text {p}, and yes elsewhere.",
    "Would it be a mistake to claim that the sentence {p}?",
    "Drop whatever line {p}; what is left is a yes.",
    "I am after every message save one that {p}.",
)
UNSEEN_PHRASES = 8  # wordings of a task with an unseen verb, and with an unseen noun
_SALAD = (
    "window purple seven slowly lamp the of river beyond carpet although jumping tax "
    "butter wheel under quiet glass march into lemon stone whether paper cloud"
).split()


class Wording(NamedTuple):
    """A description, and the template and verb phrase it is made of.

    `negates` is True if the template negates.
    """

    text: str
    template: str
    phrase: str
    negates: bool


class Wordings(NamedTuple):
    """The descriptions of one task."""

    seen: tuple[Wording, ...]
    unseen_verb: tuple[Wording, ...]
    unseen_noun: tuple[Wording, ...]
    unseen_template: tuple[Wording, ...]


def wordings(phrases: Phrases, polarity: int, rng: np.random.Generator) -> Wordings:
    """Return the descriptions of an attribute (polarity 1) or its negation (-1).

    Each template occurs once, with a phrase that is drawn; phrases are drawn in rounds,
    so that all occur about equally often. Only a negation has negating templates.
    """
    own = phrases.seen.of(polarity)
    seen = tuple(_fill(TEMPLATES, own, False, rng))
    fresh = tuple(_fill(UNSEEN_TEMPLATES, own, False, rng))
    if polarity < 0:
        seen += tuple(_fill(NEGATING, phrases.seen.yes, True, rng))
        fresh += tuple(_fill(UNSEEN_NEGATING, phrases.seen.yes, True, rng))
    verbs, nouns = (
        tuple(_rephrased(forms, polarity, rng))
        for forms in (phrases.unseen_verb, phrases.unseen_noun)
    )
    return Wordings(seen, verbs, nouns, fresh)


def _rephrased(
    forms: Forms, polarity: int, rng: np.random.Generator
) -> Iterator[Wording]:
    """Yield wordings with phrases that are not for training, in drawn templates."""
    at = rng.permutation(len(TEMPLATES))[:UNSEEN_PHRASES]
    yield from _fill([TEMPLATES[i] for i in at], forms.of(polarity), False, rng)
    if polarity < 0:
        at = rng.permutation(len(NEGATING))[: UNSEEN_PHRASES // 2]
        yield from _fill([NEGATING[i] for i in at], forms.yes, True, rng)


def _fill(
    templates: Sequence[str],
    phrases: Sequence[str],
    negates: bool,
    rng: np.random.Generator,
) -> Iterator[Wording]:
    rounds = -(-len(templates) // len(phrases))
    order = np.concatenate([rng.permutation(len(phrases)) for _ in range(rounds)])
    for template, i in zip(templates, order, strict=False):
        p = phrases[i]
        ask = question(p)
        text = template.format(p=p, P=_capital(p), ask=ask, Ask=_capital(ask))
        yield Wording(text, template, p, negates)


def question(phrase: str) -> str:
    """Return a phrase as a question about the sentence: "does the sentence lack ...".

    The first word is a verb in the third person, which may follow "never".
    """
    first, rest = phrase.split(" ", 1)
    if first in ("is", "was"):
        return f"{first} the sentence {rest}"
    if phrase.startswith("does not "):
        return f"is it so that the sentence {phrase}"
    if first == "never":
        verb, rest = rest.split(" ", 1)
        if verb in ("is", "was"):
            return f"{verb} the sentence never {rest}"
        return f"does the sentence never {_plain(verb)} {rest}"
    return f"does the sentence {_plain(first)} {rest}"


def _plain(verb: str) -> str:
    """Return the infinitive of a verb in the third person."""
    if verb in ("has", "does", "goes"):
        return {"has": "have", "does": "do", "goes": "go"}[verb]
    return verb[:-2] if verb.endswith(("sses", "ches", "shes", "xes")) else verb[:-1]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def nonsense(seed: int = 0) -> list[str]:
    """Return ten descriptions that say nothing, to be used in place of a real one."""
    rng = np.random.default_rng([seed, 7])

    def salad(n: int) -> str:
        return " ".join(rng.choice(_SALAD, n, replace=False))

    letters = "".join(rng.choice(list("bcdfghjklmnpqrstvwxz"), 18))
    return [
        salad(9),
        salad(14) + ".",
        salad(5) + "?",
        rng.choice(list("abcdefghijklmnopqrstuvwxyz")).item(),
        ".",
        " ".join(["the"] * 12),
        f"{letters[:7]} {letters[7:11]} {letters[11:]}",
        "Съешь ещё этих мягких булок, да выпей чаю.",
        "いろはにほへと ちりぬるを",
        " ".join(map(str, rng.integers(0, 10, 10))),
    ]
