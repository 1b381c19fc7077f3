"""JSON objects that the service reads and writes; /docs shows these descriptions."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from hypelora_jax.inference.predictor import Predictor
from hypelora_jax.serve.failures import Refusal


def parsed(body: bytes, wanted: str) -> Any:
    """Parse the JSON of a body; `wanted` says in messages what it should be.

    Raises:
      Refusal: it is not JSON, is nested too deeply, or has a key twice in an object,
        of which json.loads would take the last one without a word.
    """
    try:
        return json.loads(body, object_pairs_hook=_object)
    except RecursionError:
        raise Refusal(400, f"the body is nested too deeply; {wanted}") from None
    except ValueError:
        raise Refusal(400, f"the body is not JSON; {wanted}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        if name in out:
            line = f"an object in the body has the key {name[:60]!r} twice"
            raise Refusal(422, f"{line}; expected each key once")
        out[name] = value
    return out


class Question(BaseModel):
    """A text, or a pair of texts, for one of the adapters.

    A run that makes an adapter for each task needs one of `description`, `task` and
    `condition`.
    """

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"text": "A fine film."}]}
    )
    text: str
    text_b: str | None = Field(None, description="For runs trained on pairs.")
    condition: list[float] | list[list[float]] | str | int | None = Field(
        None, description="For runs whose data give one: a vector, or its id."
    )
    description: str | None = Field(
        None, description="What its task asks, for runs that read descriptions."
    )
    task: str | None = Field(None, description="A name of `tasks` in /adapters.")
    labels: list[str] | None = Field(
        None, description="With a description, where `names_labels` is true."
    )
    adapter: str | None = Field(
        None, description="A name of /adapters; by default the first one."
    )


class Prediction(BaseModel):
    """The answer of a classifier."""

    label: str | None = Field(
        description="The most probable class; null if it abstained."
    )
    confidence: float = Field(description="Its calibrated probability, 0 to 1.")
    probs: dict[str, float] = Field(description="Of every class; the sum is 1.")
    set: list[str] = Field([], description="With --coverage: the conformal set.")
    abstained: bool = Field(False, description="With --abstain: no label is given.")
    nearest: str | None = Field(
        None, description="The training task with the description most like this one."
    )
    distance: float | None = Field(
        None, description="1 minus the cosine to it; far away, confidence is untested."
    )


class Score(BaseModel):
    """The answer of a regression."""

    label: float = Field(description="The score again.")
    score: float = Field(description="The predicted number.")


class Failure(BaseModel):
    """The reason why there is no answer, in one line."""

    error: str


class Adapter(BaseModel):
    """A run that answers questions."""

    name: str
    task: str
    kind: str = Field(description="classification or regression")
    labels: list[str]
    pair: bool = Field(description="Whether it reads two texts.")
    condition: list[int] | None = Field(
        description="Shape of the condition it reads; null if it reads none."
    )
    max_length: int = Field(description="Tokens that longer texts are cut to.")
    tasks: list[str] = Field([], description="Tasks that a question may name.")
    describes: bool = Field(False, description="Whether it may describe its task.")
    names_labels: bool = Field(
        False, description="Whether a description may come with labels of its own."
    )


Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]


class LoadAdapter(BaseModel):
    """A run that is to be added to the service."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"lora_name": "cola"}]}
    )
    lora_name: Name = Field(description="What the adapter will be called.")
    lora_path: str | None = Field(
        None, description="Its folder below --lora_dir; by default the name."
    )
    load_inplace: bool = Field(
        False, description="Replace the adapter of that name, if there is one."
    )


class UnloadAdapter(BaseModel):
    """A run that is to be removed from the service."""

    model_config = ConfigDict(extra="forbid")
    lora_name: Name = Field(description="A name of /adapters.")


def _shape(value: Any) -> str:
    return "several" if isinstance(value, list) else "one"


Questions = Annotated[
    Annotated[Question, Tag("one")]
    | Annotated[list[Question], Field(min_length=1), Tag("several")],
    Discriminator(_shape),
]


def adapter_of(name: str, predictor: Predictor) -> Adapter:
    """Describe an adapter for /adapters."""
    task, reader = predictor.task, predictor.tasks
    return Adapter(
        name=name,
        task=task.name,
        kind=task.kind,
        labels=list(task.labels),
        pair=task.pair,
        condition=None if predictor.vectors is None else list(predictor.vectors.shape),
        max_length=predictor.settings.data.max_length,
        tasks=[] if reader is None else list(reader.names),
        describes=reader is not None and reader.describes,
        names_labels=reader is not None and reader.names_labels,
    )
