"""Questions: how they are checked before they wait for an answer."""

from typing import Any

from hypelora_jax.errors import UserError
from hypelora_jax.inference.predictor import Predictor
from hypelora_jax.inference.texts import as_fields
from hypelora_jax.serve.adapter_pool import AdapterPool
from hypelora_jax.serve.batching import Query
from hypelora_jax.serve.failures import Refusal
from hypelora_jax.serve.limits import Limits
from hypelora_jax.serve.schemas import Question

OF_TASKS = ("description", "task", "labels")  # fields for runs that read a task


def adapter_name(pool: AdapterPool, question: Question) -> str:
    """Return the name of the adapter that is asked; the first one is the default.

    Raises:
      Refusal: there is no such adapter.
    """
    if question.adapter is None:
        return next(iter(pool))
    check_known(pool, question.adapter)
    return question.adapter


def check_known(pool: AdapterPool, name: str) -> None:
    """Refuse the name of an adapter that is not in the pool."""
    if name not in pool:
        known = ", ".join(pool)
        raise Refusal(
            404, f"there is no adapter {name[:60]!r}; expected one of {known}"
        )


def checked(
    predictor: Predictor, limits: Limits, number: int, question: Question
) -> Query:
    """Return what the adapter reads of question `number`.

    Raises:
      Refusal: a text is empty or too long, or the question does not fit the run.
    """
    texts = _texts(predictor, limits, number, question)
    cells = question.model_dump()
    if predictor.tasks is not None:
        if what := predictor.tasks.fault(cells):
            raise Refusal(422, f"texts[{number}]: {what}")
        return Query(texts, asked=predictor.tasks.asked(cells))
    if extra := [name for name in OF_TASKS if cells[name] is not None]:
        raise Refusal(422, _not_read(number, extra[0]))
    return Query(texts, _condition(predictor, number, question.condition))


def _texts(
    predictor: Predictor, limits: Limits, number: int, question: Question
) -> tuple[str, ...]:
    second = () if question.text_b is None else (question.text_b,)
    texts, most = (question.text, *second), limits.max_chars
    every = (*texts, question.description or "")
    if long := [len(text) for text in every if len(text) > most]:
        line = f"texts[{number}] has {long[0]} characters; expected at most {most}"
        raise Refusal(413, line)
    try:
        return as_fields(texts, number, predictor.task.pair)
    except UserError as e:
        raise Refusal(422, str(e)) from e


def _condition(predictor: Predictor, number: int, cell: Any) -> Any:
    """Return the vector of a question, or None if its run reads none."""
    if predictor.vectors is None:
        if cell is not None:
            raise Refusal(422, _not_read(number, "condition"))
        return None
    if what := predictor.vectors.fault(cell):
        raise Refusal(422, f"texts[{number}]: {what}")
    return predictor.vectors.vector(cell)


def _not_read(number: int, name: str) -> str:
    return f"texts[{number}] has {name!r}, which this run does not read; leave it out"
