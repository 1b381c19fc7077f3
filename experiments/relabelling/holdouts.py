"""Which tasks do not train, and along which axis they are new.

- `thresholds_inside`: a threshold between two thresholds that are trained.
- `thresholds_outside`: a threshold beyond all that are trained.
- `combinations`: one form of an attribute whose other form is trained. Half of these
  have the negation held out ("does not have a number"), half the attribute itself.
- `validation_combinations`: others of that kind, to choose methods and temperatures by.
- `attributes`: both forms are held out.
- `domain`: trained tasks on sentences of a domain that is left out of training.

All others are in the group `train`.
"""

from typing import NamedTuple

# Thresholds of the number of words, and of the mean rating, -4..4.
WORDS = (6, 8, 10, 13, 16, 18, 20)
WORDS_INSIDE = (9, 12, 15)
WORDS_OUTSIDE = (4, 22)
RATINGS = (-2, -1.5, -1.25, -0.5, 0.5, 1.25, 1.5, 2)
RATINGS_INSIDE = (-1.75, -1, 1)
RATINGS_OUTSIDE = (-2.5, 2.5)

# Attribute: the form that is held out, 1 itself, -1 its negation.
COMBINATIONS = {
    "strong": -1,
    "number": -1,
    "second_person": -1,
    "nyt": -1,
    "comma": -1,
    "time": -1,
    "money": -1,
    "exclamation": 1,
    "film": 1,
    "mention": 1,
    "intensifier": 1,
    "past": 1,
    "comparison": 1,
    "politics": 1,
}
VALIDATION_COMBINATIONS = {
    "first_person": -1,
    "bracket": -1,
    "modal": -1,
    "good": -1,
    "story": -1,
    "amazon": -1,
    "they": 1,
    "colon": 1,
    "love": 1,
    "actor": 1,
    "hyphen": 1,
    "quantifier": 1,
}
ATTRIBUTES = ("question", "he_she", "ellipsis", "family", "starts_the", "device")


class Form(NamedTuple):
    """One of the two tasks of an attribute: polarity 1, or -1 for its negation."""

    attribute: str
    polarity: int

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.attribute if self.polarity > 0 else f"not_{self.attribute}"

    @property
    def other(self) -> "Form":
        """The negation."""
        return Form(self.attribute, -self.polarity)


def group(form: Form, threshold: float | None) -> str:
    """Return the group of a task; `threshold` is that of its attribute."""
    if threshold is not None:
        words = form.attribute.startswith("words")
        if threshold in (WORDS_INSIDE if words else RATINGS_INSIDE):
            return "thresholds_inside"
        if threshold in (WORDS_OUTSIDE if words else RATINGS_OUTSIDE):
            return "thresholds_outside"
    if form.attribute in ATTRIBUTES:
        return "attributes"
    if COMBINATIONS.get(form.attribute) == form.polarity:
        return "combinations"
    if VALIDATION_COMBINATIONS.get(form.attribute) == form.polarity:
        return "validation_combinations"
    return "train"
