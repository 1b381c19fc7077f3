"""The verdict of an audit: one line, by a rule that is fixed in advance."""

from collections.abc import Mapping

from hypelora_jax.evaluate.audit.paired import Interval

# Controls that the right condition must beat before it is said to matter.
NEEDED = ("static", "shuffled", "junk", "description_only")
SAME = 0.01  # nats; a condition that changes the loss by less does not matter


def verdict(margins: Mapping[str, Interval]) -> tuple[str, str]:
    """Return ("matters" | "does not matter" | "cannot be told", the line that says it).

    Args:
      margins: by control, the difference in NLL of the control minus that of the right
        condition, with its paired interval. Above 0 the right condition is better.
    """
    shuffled = margins.get("shuffled")
    if shuffled and -SAME < shuffled["low"] and shuffled["high"] < SAME:
        return "does not matter", (
            "The condition does not matter: with that of another task the loss differs "
            f"by {_said(shuffled)}, within {SAME:g} of 0."
        )
    lacking = [name for name in NEEDED if name not in margins]
    if lacking:
        missing = " and ".join(lacking)
        return "cannot be told", (
            f"Whether the condition matters cannot be told: there is no {missing} to "
            "compare with."
        )
    lost = [name for name in NEEDED if margins[name]["low"] <= 0]
    if not lost:
        best = min(NEEDED, key=lambda name: margins[name]["value"])
        return "matters", (
            f"The condition matters: it beats {', '.join(NEEDED)}; the nearest of them "
            f"is {best}, whose loss is {_said(margins[best])} higher."
        )
    worst = min(lost, key=lambda name: margins[name]["low"])
    return "cannot be told", (
        "Whether the condition matters cannot be told: it does not beat "
        f"{', '.join(lost)} beyond chance; against {worst} the difference in loss is "
        f"{_said(margins[worst])}."
    )


def _said(one: Interval) -> str:
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
