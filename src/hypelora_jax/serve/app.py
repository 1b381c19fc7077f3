"""The paths of the service, in FastAPI, which the extra `serve` installs."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

from absl import logging
from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute

import hypelora_jax
from hypelora_jax.errors import UserError
from hypelora_jax.inference.answers import Fields
from hypelora_jax.serve import questions as questions_lib
from hypelora_jax.serve.adapter_pool import AdapterPool, AdapterSource
from hypelora_jax.serve.batching import Batcher, Full, Query
from hypelora_jax.serve.failures import HANDLERS, App, Refusal, as_json, wanted
from hypelora_jax.serve.limits import Limits, limited
from hypelora_jax.serve.meters import Meters, prometheus
from hypelora_jax.serve.pages import api_page, page
from hypelora_jax.serve.schemas import (
    Adapter,
    Failure,
    LoadAdapter,
    Prediction,
    Question,
    Questions,
    Score,
    UnloadAdapter,
    adapter_of,
    parsed,
)

ABOUT = """Calibrated predictions of fine-tuned runs. The numbers are those of
`hypelora predict`."""


@dataclasses.dataclass(frozen=True)
class Service:
    """The objects that the paths need to answer."""

    pool: AdapterPool
    batcher: Batcher
    meters: Meters
    limits: Limits
    folder: AdapterSource | None = None  # of runs that may be added; None: none may


class _Body(Request):
    """A request whose JSON is read by `schemas.parsed`."""

    async def json(self) -> Any:
        return parsed(await self.body(), wanted(self.url.path))


class _Route(APIRoute):
    """A path whose body is read by `schemas.parsed`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_Body(request.scope, request.receive))

        return handle


def application(service: Service, hosts: tuple[str, ...] = ()) -> App:
    """Return the ASGI application; `hosts` are the allowed host names, () is any."""

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with service.batcher:
            yield

    app = FastAPI(
        title="hypelora serve",
        version=hypelora_jax.__version__,
        description=ABOUT,
        lifespan=running,
        docs_url=None,  # FastAPI's page loads external scripts; ours is /docs
        redoc_url=None,
    )
    app.router.route_class = _Route
    _add_api(app, service)
    if service.folder is not None:
        _add_swaps(app, service, service.folder)
    _add_pages(app, service)
    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)
    return limited(app, service.limits, service.meters, hosts)


def _add_api(app: FastAPI, service: Service) -> None:
    one = Prediction | Score
    refused = (400, 404, 413, 415, 422, 429, 500, 503)

    @app.post(
        "/predict",
        responses={
            200: {"model": one | list[one]},
            **{status: {"model": Failure} for status in refused},
        },
        summary="Ask an adapter",
    )
    async def predict(questions: Annotated[Questions, Body()]) -> Response:
        """One question returns an object; a list returns a list in the same order.

        Errors are `{"error": "..."}`: 400 not JSON, 404 unknown adapter, 413 too large,
        415 not `application/json` or compressed, 422 not a valid question, 429 too many
        requests, 500 no finite answer, 503 too busy.
        """
        if isinstance(questions, list):
            return as_json(await answers(service, questions))
        (answer,) = await answers(service, [questions])
        return as_json(answer)

    @app.get("/adapters", summary="Which adapters answer")
    async def adapters() -> list[Adapter]:
        """The first adapter answers questions that name no adapter."""
        return [adapter_of(name, one) for name, one in service.pool.items()]

    @app.get("/healthz", summary="Is it alive?")
    async def healthz() -> dict[str, str]:
        """The status is 200 as soon as everything is compiled."""
        return {"status": "ok"}

    @app.get("/metrics", summary="Counts, for Prometheus")
    async def metrics() -> Response:
        """Counts of requests, texts, batches; mean batch size; latency in seconds."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(prometheus(service.meters), media_type=kind)


def _add_swaps(app: FastAPI, service: Service, folder: AdapterSource) -> None:
    """Add the paths by which adapters come and go; they are named as in vLLM."""
    loading = asyncio.Lock()  # one at a time
    pool = service.pool

    @app.post(
        "/v1/load_lora_adapter",
        responses={status: {"model": Failure} for status in (400, 409, 415, 422, 500)},
        summary="Add an adapter, or replace one",
    )
    async def load(asked: LoadAdapter) -> Adapter:
        """Load a run from below `--lora_dir` while other questions are answered.

        Errors are `{"error": "..."}`: 409 the name is taken, 422 there is no such run,
        or it is not like one that the service was started with.
        """
        name = asked.lora_name
        async with loading:
            if name in pool and not asked.load_inplace:
                raise Refusal(409, f"{name} is loaded; unload it, or set load_inplace")
            path = name if asked.lora_path is None else asked.lora_path
            try:
                found = await asyncio.to_thread(folder.load, path)
            except UserError as e:
                raise Refusal(422, str(e)) from e
            await service.batcher.add(name, *found)
            logging.info("loaded %r from %r", name, path)
        return adapter_of(name, pool[name])

    @app.post(
        "/v1/unload_lora_adapter",
        responses={status: {"model": Failure} for status in (400, 404, 409, 415, 422)},
        summary="Remove an adapter",
    )
    async def unload(asked: UnloadAdapter) -> Adapter:
        """Remove an adapter; questions that wait for it are still answered.

        Errors are `{"error": "..."}`: 404 unknown adapter, 409 it is the first one,
        which answers questions that name no adapter.
        """
        name = asked.lora_name
        async with loading:
            questions_lib.check_known(pool, name)
            if name == next(iter(pool)):
                raise Refusal(
                    409, f"{name} answers questions that name no adapter, so it stays"
                )
            gone = adapter_of(name, pool[name])
            service.batcher.remove(name)
            logging.info("unloaded %r", name)
        return gone


def _add_pages(app: FastAPI, service: Service) -> None:
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
    """Answer questions in their order; they may name different adapters.

    Raises:
      Refusal: there are too many texts, a question does not fit its adapter, or the
        queue is full.
    """
    limits = service.limits
    if len(questions) > limits.max_texts:
        line = f"{len(questions)} questions; expected at most {limits.max_texts}"
        raise Refusal(413, line)
    by_name: dict[str, list[tuple[int, Query]]] = {}
    for i, question in enumerate(questions):
        name = questions_lib.adapter_name(service.pool, question)
        query = questions_lib.checked(service.pool[name], limits, i, question)
        by_name.setdefault(name, []).append((i, query))
    out: list[Fields] = [{}] * len(questions)
    asked = [
        service.batcher.ask(name, [query for _, query in own])
        for name, own in by_name.items()
    ]
    try:
        found = await asyncio.gather(*asked)
    except Full as e:
        raise Refusal(
            503, "too many texts are waiting; try again", retry_after=1
        ) from e
    for own, own_answers in zip(by_name.values(), found, strict=True):
        for (i, _), one in zip(own, own_answers, strict=True):
            out[i] = one
    return out
