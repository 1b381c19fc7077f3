"""The model card of an exported model: README.md, which Hugging Face displays."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hypelora_jax import files
from hypelora_jax.report.metric_tables import cell, title_of

SHOWN = ("accuracy", "mcc", "f1", "pearson", "spearman", "mse", "nll", "ece", "brier")
DIAGRAM = "reliability.png"


class Card(NamedTuple):
    """Facts that a card states."""

    name: str  # path of the folder, as the user gave it
    kind: str  # peft or merged
    method: str
    base: str  # name or path that from_pretrained takes
    on_hub: bool  # whether `base` is a name on the hub, and no path
    revision: str
    task: str
    labels: Sequence[str]  # () for a regression
    pair: bool
    max_length: int
    temperature: float | None  # divides this folder's logits; None if no scalar can
    calibrated: bool  # whether the head was divided by the temperature
    fitted: float | None  # temperature, if one was fitted or learned
    calibrator: str  # kind of the fitted calibrator, "" if there is none
    metrics: Mapping[str, Mapping[str, Any]]  # split -> metrics, as `evaluate` writes
    has_diagram: bool


def markdown(card: Card) -> str:
    """The text of README.md."""
    parts = [
        _front(card),
        f"# {card.name.rstrip('/').rsplit('/', 1)[-1]}",
        _about(card),
        _calibration(card),
    ]
    parts += [_metrics(card), f"## Use\n\n```python\n{code(card)}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(card: Card) -> str:
    """Metadata for the hub; a base model given as a path has no hub name."""
    lines = ["---", "pipeline_tag: text-classification"]
    lines.append(f"library_name: {'peft' if card.kind == 'peft' else 'transformers'}")
    if card.on_hub:
        lines.append(f"base_model: {card.base}")
    return "\n".join([*lines, "tags: [lora, calibration]", "---"])


def _about(card: Card) -> str:
    what = {
        "peft": f"A LoRA adapter and head for `{card.base}`",
        "merged": f"`{card.base}` with its adapter merged in, and a head",
    }[card.kind]
    revision = f" at revision `{card.revision}`" if card.revision else ""
    texts = "pairs of texts" if card.pair else "texts"
    classes = ", ".join(f"`{label}`" for label in card.labels)
    task = f"classes {classes}" if card.labels else "a score (regression)"
    return (
        f"{what}{revision}, trained by hypelora_jax (method `{card.method}`) on "
        f"`{card.task}`: {texts} to {task}. Texts longer than {card.max_length} tokens "
        "were cut in training and evaluation."
    )


def _calibration(card: Card) -> str:
    if not card.labels:
        return ""
    if card.calibrated:
        text = (
            f"Calibrated: the head's last layer is divided by the temperature "
            f"{card.fitted:.4g}, fitted on held-out examples, so a plain softmax of "
            "the logits gives the calibrated probabilities."
        )
    elif card.temperature is None:
        text = (
            f"Not calibrated: the fitted calibrator is a `{card.calibrator}`, not a "
            "temperature, and is not part of these files. A plain softmax gives the "
            "uncalibrated probabilities."
        )
    elif card.fitted is not None:
        text = (
            f"Not calibrated by itself: divide the logits by the temperature "
            f"{card.fitted:.4g} before the softmax, as below."
        )
    else:
        text = "Not calibrated: no temperature was fitted."
    picture = f"![Reliability diagram]({DIAGRAM})" if card.has_diagram else ""
    return "## Calibration\n\n" + "\n\n".join(p for p in (text, picture) if p)


def _metrics(card: Card) -> str:
    """Rows of each split, before and after calibration."""
    rows = {}
    for split, values in card.metrics.items():
        raw = values.get("uncalibrated")
        if raw and raw.get("temperature") != values.get("temperature"):
            rows[f"{split}, uncalibrated"] = raw
            rows[f"{split}, calibrated"] = values
        else:
            rows[split] = values
    names = [n for n in SHOWN if any(n in row for row in rows.values())]
    if not names:
        return ""
    head = ["", *map(title_of, names)]
    lines = [_line(head), _line(["---"] * len(head))]
    for name, row in rows.items():
        lines.append(_line([name, *(cell(row.get(n)) for n in names)]))
    note = "\n\nProbabilities of the adapter as hypelora_jax computes them, float32."
    return "## Metrics\n\n" + "\n".join(lines) + note


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def code(card: Card) -> str:
    """Python lines that load the folder, use it, and print probabilities or scores."""
    auto = "AutoModelForSequenceClassification"
    base, name = files.to_json(card.base), files.to_json(card.name)
    lines = [f"from transformers import {auto}, AutoTokenizer"]
    if card.kind == "peft":
        classes = _id2label(card)
        revision = f", revision={card.revision!r}" if card.revision else ""
        lines += [
            "from peft import PeftModel",
            "",
            f"base = {auto}.from_pretrained(",
            f"    {base}, {classes}{revision},",
            "    ignore_mismatched_sizes=True,  # a head of the base is replaced",
            ")",
            f"model = PeftModel.from_pretrained(base, {name}).eval()",
        ]
    else:
        load = f"{auto}.from_pretrained({name})"
        lines += ["", f"model = {load}.eval()"]
    text = '"A text.", "Another one."' if card.pair else '"A text."'
    cut = f"truncation=True, max_length={card.max_length}"
    scale = ""
    if card.temperature not in (None, 1.0):
        scale = f" / {card.temperature!r}"
    ending = f"({{}}{scale}).softmax(-1)" if scale else "{}.softmax(-1)"
    result = ending.format("logits") if card.labels else "logits"
    lines += [
        f"tokenizer = AutoTokenizer.from_pretrained({name})",
        f'inputs = tokenizer({text}, {cut}, return_tensors="pt")',
        "logits = model(**inputs).logits.detach()",
        f"print({result})",
    ]
    return "\n".join(lines)


def _id2label(card: Card) -> str:
    if not card.labels:
        return "num_labels=1"
    return f"id2label={dict(enumerate(card.labels))!r}"
