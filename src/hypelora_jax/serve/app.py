"""The paths of the service, in FastAPI; the extra `serve` carries it."""

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from starlette.exceptions import HTTPException

import hypelora_jax
from hypelora_jax.errors import UserError
from hypelora_jax.inference import predictor
from hypelora_jax.serve import api_page, page
from hypelora_jax.serve.adapter_pool import Shelf
from hypelora_jax.serve.batching import Batcher, Fields, Full
from hypelora_jax.serve.limits import App, Limits, Refusal, guarded, refuse
from hypelora_jax.serve.meters import Meters, prometheus

WANTED = 'wanted {"text": "..."}, or a list of such objects'
ABOUT = """Calibrated predictions of fine-tuned runs. The numbers are those of
`hypelora predict`."""


class Question(BaseModel):
    """A text, or a pair of texts, for one of the adapters."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"text": "A fine film."}]}
    )
    text: str
    text_b: str | None = Field(None, description="Where a run was trained on pairs.")
    adapter: str | None = Field(None, description="A name of /adapters; the first one.")


class Prediction(BaseModel):
    """What a run says of a text, for classes."""

    label: str | None = Field(description="The most probable class; null: abstained.")
    confidence: float = Field(description="Its calibrated probability, 0 to 1.")
    probs: dict[str, float] = Field(description="Of every class; the sum is 1.")
    set: list[str] = Field([], description="With --coverage: the conformal set.")
    abstained: bool = Field(False, description="With --abstain: no label is given.")


class Score(BaseModel):
    """What a regression says of a text."""

    label: float = Field(description="The score again.")
    score: float = Field(description="The predicted number.")


class Failure(BaseModel):
    """Why there is no answer: one line."""

    error: str


class Adapter(BaseModel):
    """A run that answers."""

    name: str
    task: str
    kind: str = Field(description="classification or regression")
    labels: list[str]
    pair: bool = Field(description="Whether it wants two texts.")
    max_length: int = Field(description="Tokens that longer texts are cut to.")


@dataclasses.dataclass(frozen=True)
class Service:
    """What the paths answer from."""

    shelf: Shelf
    batcher: Batcher
    meters: Meters
    limits: Limits


def _shape(value: Any) -> str:
    return "several" if isinstance(value, list) else "one"


Questions = Annotated[
    Annotated[Question, Tag("one")]
    | Annotated[list[Question], Field(min_length=1), Tag("several")],
    Discriminator(_shape),
]


def application(service: Service, hosts: tuple[str, ...] = ()) -> App:
    """The ASGI application; `hosts`: names it answers to, (): any."""

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with service.batcher:
            yield

    app = FastAPI(
        title="hypelora serve",
        version=hypelora_jax.__version__,
        description=ABOUT,
        lifespan=running,
        docs_url=None,  # its pages fetch scripts from elsewhere: ours is /docs
        redoc_url=None,
    )
    _answers(app, service)
    _pages(app, service)
    for error, answer in ERRORS.items():
        app.add_exception_handler(error, answer)
    return guarded(app, service.limits, service.meters, hosts)


def _answers(app: FastAPI, service: Service) -> None:
    one = Prediction | Score
    responses = {200: {"model": one | list[one]}}
    responses |= {no: {"model": Failure} for no in (400, 404, 413, 415, 422, 429, 503)}

    @app.post("/predict", responses=responses, summary="Ask an adapter")
    async def predict(questions: Annotated[Questions, Body()]) -> Response:
        """One question gives an object, a list of them a list in the same order.

        Errors are `{"error": "..."}`: 400 no JSON, 404 unknown adapter, 413 too large,
        415 no `application/json`, 422 no such question, 429 too often, 503 too busy.
        """
        many = isinstance(questions, list)
        found = await answers(service, questions if many else [questions])
        return _json(found if many else found[0])

    @app.get("/adapters", summary="Which adapters answer")
    async def adapters() -> list[Adapter]:
        """The first one answers where a question names none."""
        return [_about(name, one) for name, one in service.shelf.items()]

    @app.get("/healthz", summary="Is it alive?")
    async def healthz() -> dict[str, str]:
        """200 from the moment on that everything is compiled."""
        return {"status": "ok"}

    @app.get("/metrics", summary="Counts, for Prometheus")
    async def metrics() -> Response:
        """Requests, texts, batches, their mean size, latency in seconds."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(prometheus(service.meters), media_type=kind)


def _pages(app: FastAPI, service: Service) -> None:
    head = {
        "content-security-policy": page.POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }

    @app.get("/", include_in_schema=False)
    async def ask() -> HTMLResponse:
        return HTMLResponse(page.HTML, headers=head)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(api_page.html(app.openapi()), headers=head)


async def answers(service: Service, questions: list[Question]) -> list[Fields]:
    """Answers in the order of the questions, of whichever adapters they name.

    Raises:
      Refusal: too many or too long texts, an unknown adapter, no text, a busy service.
    """
    limits = service.limits
    if len(questions) > limits.max_texts:
        line = f"{len(questions)} questions; wanted at most {limits.max_texts}"
        raise Refusal(413, line)
    by_name: dict[str, list[int]] = {}
    texts = []
    for i, question in enumerate(questions):
        first = next(iter(service.shelf))
        name = first if question.adapter is None else question.adapter
        by_name.setdefault(name, []).append(i)
        texts.append(_texts(service, name, i, question))
    out: list[Fields] = [{}] * len(questions)
    for name, places in by_name.items():
        try:
            found = await service.batcher.ask(name, [texts[i] for i in places])
        except Full as e:
            raise Refusal(503, "too many texts wait; try again", retry_after=1) from e
        for i, one in zip(places, found, strict=True):
            out[i] = one
    return out


def _texts(service: Service, name: str, i: int, question: Question) -> tuple[str, ...]:
    if name not in service.shelf:
        known = ", ".join(service.shelf)
        raise Refusal(404, f"no adapter {name[:60]!r}; wanted one of {known}")
    second = () if question.text_b is None else (question.text_b,)
    texts = (question.text, *second)
    if long := [len(t) for t in texts if len(t) > service.limits.max_chars]:
        most = service.limits.max_chars
        line = f"texts[{i}] has {long[0]} characters; wanted at most {most}"
        raise Refusal(413, line)
    try:
        return predictor.as_fields(texts, i, service.shelf[name].task.pair)
    except UserError as e:
        raise Refusal(422, str(e)) from e


def _about(name: str, one: predictor.Loaded) -> Adapter:
    task, settings = one.task, one.run.bench.settings
    labels, length = list(task.labels), settings.data.max_length
    return Adapter(
        name=name,
        task=task.name,
        kind=task.kind,
        labels=labels,
        pair=task.pair,
        max_length=length,
    )


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")


async def _refused(request: Request, error: Refusal) -> App:
    del request
    return lambda scope, receive, send: refuse(error, send)


async def _unlike(request: Request, error: RequestValidationError) -> Response:
    """No JSON, or JSON that is no question; what was sent is not echoed."""
    del request
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _json({"error": f"the body is no JSON; {WANTED}"}, 400)
    path = [x for x in first["loc"] if x not in ("body", "one", "several")]
    where = "".join(f"[{x}]" if isinstance(x, int) else f".{x:.60}" for x in path)
    what = first["msg"][:1].lower() + first["msg"][1:]
    line = " ".join(f"body{where}: {what}; {WANTED}".split())
    return _json({"error": line}, 422)


async def _http(request: Request, error: HTTPException) -> Response:
    line = f"{request.method} {request.url.path[:60]}: {error.detail}; /docs has all"
    return _json({"error": line}, error.status_code)


async def _fault(request: Request, error: Exception) -> Response:
    del request, error  # the server logs it
    return _json({"error": "a fault of ours; its log says more"}, 500)


ERRORS = {
    Refusal: _refused,
    RequestValidationError: _unlike,
    HTTPException: _http,
    Exception: _fault,
}
