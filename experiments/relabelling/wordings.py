"""Wordings of a task: a verb phrase in a template, and junk in place of a wording.

A description of training has a template and a verb phrase of training. `unseen_verb`
and `unseen_noun` are new verb phrases in known templates, with known nouns and with new
ones. `unseen_template` are known phrases in new templates.
A negation is worded in two ways: by a phrase ("contains no number") in any template, or
by a template that negates ("It is false that ...") around the phrase of the attribute.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .phrases import Forms, Phrases

# {p} is a phrase, {P} with a capital, {ask} and {Ask} are it as a question. Of the
# alternatives in [a|b] one is drawn for each wording; N stands for NOUNS.
NOUNS = "sentence|text|passage|comment|line|quote|snippet|message|remark|post"
TEMPLATES = (
    "{Ask}?",
    "Answer [yes or no|with yes or no|by yes or no]: {ask}?",
    "[Tell me this|I ask this|The question is this|Here is the question]: {ask}?",
    "The [N] {p}.",
    "{P}: [yes or no|true or false|right or wrong]?",
    "[A|One] [N] that {p}.",
    "Is it [true|right|correct|so|the case] that the [N] {p}?",
    "[Say|Answer|Reply|Output] yes [if|when|whenever|in case] the [N] {p}.",
    "[Say|Answer|Reply] yes if this {p}, [otherwise|or else] say no.",
    "[Label|Tag|Note|Mark]: [whether|if] this [N] {p}",
    "[Decide|Determine|Work out|Find] [whether|if] the [N] {p}.",
    "yes = the [N] {p}, no = [anything else|the rest|all others]",
    "[Answer|Reply with|Choose] yes when the [N] {p}.",
    "[True or false|Right or wrong|Yes or no]: the [N] {p}.",
    "[Check|Confirm|Make sure] that this [N] {p}.",
    "[Mark|Tick|Underline|Highlight] each [N] that {p}.",
    "[Any|Each|Every] [N] which {p} [counts as|is|gets] a yes.",
    "A yes [means|says|tells us] that the [N] {p}.",
    "I [want|would like|need] to know [if|whether] this [N] {p}.",
    "Would [a reader|a critic|you|people] say that the [N] {p}?",
    "[Task|Job|Goal]: [spot|find|detect] any [N] that {p}.",
    "[Pick|Choose|Take] yes for a [N] that {p} and no for any other.",
    "Only a [N] that {p} [gets|earns|deserves] a yes.",
    "[Classify|Sort|Judge] the [N] by one statement: it {p}.",
    "Given a [short|brief] [N], [judge|say|decide] if it {p}.",
    "A [claim|statement] about the [N] is that it {p}. Is [the claim|it] right?",
    "Does this [hold|apply|fit]? The [N] {p}.",
    "The [condition|criterion|requirement|rule] is that the [N] {p}.",
    "[Respond|Reply|Answer] with yes [exactly|just|only] when the [N] {p}.",
    "[Please|Kindly] [verify|check|confirm] that the [N] {p}.",
    "[Someone|A friend|My colleague] says that this [N] {p}. [Is that|Are they] right?",
    "[Select|Choose|Pick] a [N] [whenever|if|when] it {p}.",
    "The [N] [must|has to|should] be one that {p}.",
    "[Take in|Include|Accept|Admit] any [N] which {p}.",
    "We want [N]s for which this is [true|right]: it {p}.",
    "Keep the [N] if it {p}, [discard|drop|delete] it otherwise.",
    "[Take|Keep] [N]s of this kind, [skip|leave] the rest: it {p}.",
    "Say yes only if it is [true|right] that the [N] {p}.",
    "There is [truth|sense] in saying that the [N] {p}.",
    "[Anybody|Everyone|You] could say that this [N] {p}.",
    "[Hold on to|Save|Store|Keep] each [N] that {p}.",
    "Is this [statement|claim|sentence] [right|true|correct]? The [N] {p}.",
    "Yes for the [N]s of which this holds, no for [what remains|the rest]: it {p}.",
    "[Agree with|Support|Accept] the [claim|view|statement] that the [N] {p}.",
    "Can it be [affirmed|confirmed|said] that the [N] {p}?",
    "[Decide|Tell]: does it hold that the [N] {p}?",
    "What we [look for|need|search] is a piece of writing that {p}.",
    "Would you [agree|admit|say] with me that this [N] {p}?",
    "Rule: output yes for whatever {p}.",
    "The question to [settle|answer|decide] here: {ask}?",
    "Put a [N] on the yes [heap|pile] if it {p}, or else on the no [heap|pile].",
    "My [guess|opinion|belief] about the [N] is that it {p}. [Correct|Right]?",
    "Keep a [N] in the [collection|set|list] if it {p}.",
    "Let the answer be yes where the [N] {p}.",
    "Here is what to [test|check|look at]: the [N] {p}.",
    "[Flag|Mark|Report] it [whenever|if] the [N] {p}.",
    "Could one [say|claim|state] that the [N] {p}?",
    "Sort the [N]s into two groups; the yes [group|pile] has each one that {p}.",
    "I am after every [N] that {p}.",
    "[Judge|Assess|Test] this statement about the [N]: it {p}.",
    "One [point|question|thing] only: {ask}?",
    "[Look at|Read|Take] the [N]. {Ask}?",
    "[Read|See] this [N] and say [whether|if] it {p}.",
    "[Suppose|Assume] a [N] {p}: then the answer is yes.",
    "The answer is yes for [N]s like this: it {p}.",
    "[Filter|Search|Query]: [N] {p}",
    "Among all [N]s, [find|choose|pick out] those of which one can say: it {p}.",
    "Is it a fact that the [N] {p}?",
    "[Which|What] [N]s count? Each one that {p}.",
    "The [N] counts if it {p}.",
    "To get a yes, a [N] needs this: it {p}.",
    "[Criterion|Property|Feature]: {p}",
)
NEGATING = (
    "It is [false|untrue|wrong|incorrect] that the [N] {p}.",
    "[Say|Answer|Reply] no if the [N] {p}, and yes [otherwise|in all other cases].",
    "[Answer|Say|Reply] yes unless the [N] {p}.",
    "It is not [the case|true|so|right] that the [N] {p}.",
    "[Pick out|Choose|Take|Keep] everything [except|but|save] a [N] that {p}.",
    "no = the [N] {p}, yes = [anything else|the rest|all others]",
    "[Reject|Refuse|Turn down] a [N] that {p} and accept any other.",
    "Is it [untrue|false|wrong|not so] that the [N] {p}?",
    "The [N] [must|should|may] not be one that {p}.",
    "[Leave out|Exclude|Omit|Drop] any [N] which {p}.",
    "We want [N]s for which this is [false|untrue|wrong]: it {p}.",
    "[Discard|Drop|Delete] the [N] if it {p}, keep it otherwise.",
    "A yes means that the claim [fails|is false|is wrong]: the [N] {p}.",
    "[Skip|Leave] [N]s of this kind, take the rest: it {p}.",
    "Say yes only if it is [untrue|false|wrong] that the [N] {p}.",
    "There is no [truth|sense] in saying that the [N] {p}.",
    "[Nobody|No one] could say that this [N] {p}.",
    "[Throw away|Remove|Get rid of|Bin] each [N] that {p}.",
    "Any [N] [but|except|other than|save] one that {p}.",
    "Is this [statement|claim] [false|untrue|wrong]? The [N] {p}.",
    "Yes for what remains without the [N]s of which this holds: it {p}.",
    "[Disagree with|Deny|Dispute|Refute] the [claim|view|statement] that the [N] {p}.",
    "[Everything|Anything] goes, [except for|but not|save] a [N] which {p}.",
    "Can it be [denied|ruled out|excluded] that the [N] {p}?",
    "Is it [wrong|incorrect|a mistake] to say that the [N] {p}?",
    "[Exclude|Ban|Filter out] each [N] which {p}.",
    "Give a yes to whatever does not [fit|match|satisfy] this: it {p}.",
    "Anything will do, as long as it is not a [N] that {p}.",
    "Let the answer be no where the [N] {p}, and yes [elsewhere|otherwise].",
    "Would it be a [mistake|lie|falsehood] to claim that the [N] {p}?",
    "[Drop|Remove|Cut] whatever [N] {p}; what is left is a yes.",
    "I am after every [N] [save|but|except] one that {p}.",
    "Keep only what is left when each [N] that {p} is [gone|taken out|removed].",
    "The [N] [gets|earns] a yes if the following is [not true|false|untrue]: it {p}.",
    "[Avoid|Shun|Ignore] any [N] that {p}; accept all others.",
    "No [N] that {p} gets a yes; the others do.",
    "A [N] that {p} is [a no|out|not wanted]; any other is [a yes|in|wanted].",
    "All [N]s [other than|apart from|besides] those of which this holds: it {p}.",
    "Yes, [if|when] it cannot be said that the [N] {p}.",
    "The opposite of this: the [N] {p}.",
    "[Check|Confirm|Verify] that this [N] is not one that {p}.",
    "[Flag|Mark|Tick] each [N] except where it {p}.",
    "Does it fail to be so that the [N] {p}?",
    "[Without|Minus] the [N]s that this describes: it {p}.",
)
# Written before anything was measured with them; they must not be changed after that.
UNSEEN_TEMPLATES = (
    "Does the following apply: the text {p}?",
    "Yes is the right reply whenever the writing {p}.",
    "Find out whether what is written {p}.",
    "Raise your hand if the sentence {p}.",
    "Put a tick next to each item that {p}.",
    "The property asked about: the text {p}.",
    "Is the reader right to think that the passage {p}?",
    "We collect examples of writing that {p}.",
)
UNSEEN_NEGATING = (
    "No is the right reply whenever the writing {p}; otherwise it is yes.",
    "Does the following fail to apply: the text {p}?",
    "We collect examples of writing, but none that {p}.",
    "Is the reader mistaken to think that the passage {p}?",
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
        said = _varied(template, rng)
        text = said.format(p=p, P=_capital(p), ask=ask, Ask=_capital(ask))
        yield Wording(text, template, p, negates)


def _varied(template: str, rng: np.random.Generator) -> str:
    """Draw one of the alternatives of each `[a|b]`."""

    def drawn(found: re.Match) -> str:
        some = NOUNS if found[1] == "N" else found[1]
        return str(rng.choice(some.split("|")))

    return re.sub(r"\[([^]]*)\]", drawn, template)


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
    if verb.endswith("ies"):
        return f"{verb[:-3]}y"
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
