"""The data of the relabelling benchmark: yes/no tasks on the same rated sentences.

    python -m experiments.relabelling --output=DIR
    python -m experiments.relabelling --output=DIR --without-domain=nyt
    python -m experiments.relabelling --output=DIR --e1=amazon

All tasks ask something about the same 17,711 sentences, so the sentence does not reveal
the task, and an adapter can only know it from the description. An attribute of a
sentence (a fact of its text, its domain, what raters thought of it) makes two tasks,
itself and its negation, with the same sentences in the same order and labels flipped.

Sentences are split once, by seed, for all tasks: no task trains on a sentence that
another one is tested on. Each task has a balanced draw, half yes and half no, in each
split. Axes along which tasks or descriptions are new (holdouts.py, wordings.py):

- wordings: new verbs with known nouns and new nouns, in known templates, and known
  phrases in new templates;
- thresholds inside and outside the trained range;
- combinations of attribute and polarity whose other polarity is trained, and more of
  these to choose methods and to fit temperatures by;
- whole attributes;
- one domain, with `--without-domain`.

`--more` adds attributes to train. `--only=A,B` takes some attributes; their names are
in facts.yaml and attributes.py, and a wrong name prints all of them. `--e1=DOMAIN`
writes a smaller study: a positive opinion in each of the four domains, of which DOMAIN
does not train (experiments/domains.py).

DIR then has tasks.yaml, the set that `data.source=tasks` reads; data/TASK/SPLIT.jsonl;
sentences.jsonl; and about.json, which says of each task its attribute, kind, polarity,
threshold, group, negation and trained counterpart, how many sentences there are of each
class, and all its wordings: `seen` are the descriptions in tasks.yaml, `unseen_verb`
its `paraphrases`; `unseen_noun` and `unseen_template` are in about.json only. None of
the unseen ones trains.
"""

from .wordings import nonsense

__all__ = ["nonsense"]
