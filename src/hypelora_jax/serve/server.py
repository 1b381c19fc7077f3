"""The server of `hypelora serve`: load, compile, listen, and stop at a signal."""

import signal
import socket
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import uvicorn
from absl import logging

from hypelora_jax.errors import UserError
from hypelora_jax.inference.task_adapters import TaskAdapters
from hypelora_jax.serve.adapter_pool import (
    AdapterPool,
    AdapterSource,
    in_banks,
    names_of,
    open_pool,
)
from hypelora_jax.serve.app import Service, application
from hypelora_jax.serve.batch_sizes import batch_sizes
from hypelora_jax.serve.batching import Batcher, Seconds
from hypelora_jax.serve.connections import Connection
from hypelora_jax.serve.failures import App
from hypelora_jax.serve.limits import LOOPBACK, Limits
from hypelora_jax.serve.meters import Meters

GRACE = 30  # seconds to finish requests after a signal to stop
CONNECTIONS = 1000  # further ones at the same time get status 503
HEADERS = 1 << 14  # bytes of a request's line and headers
COMPILED = "/jax/core/compile/backend_compile_duration"


class Batching(NamedTuple):
    """How questions are gathered into batches."""

    max_batch: int = 32  # 1: each question is answered alone
    window: float = 0.002  # seconds a question waits for others
    max_waiting: int = 1024  # texts without an answer; further ones get 503
    max_loras: int = 32  # adapters of one shape on the device; others wait on the host


def serve(
    workdirs: Sequence[str],
    host: str,
    port: int,
    batching: Batching,
    limits: Limits,
    lora_dir: str = "",
    **options: Any,
) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those in progress.

    Args:
      workdirs: runs of one base model; the first answers questions that name none.
      host: address to listen at.
      port: port to listen at; 0 takes a free one, which is logged.
      batching: how questions are gathered into batches.
      limits: bounds on the requests that are answered.
      lora_dir: folder of runs that requests may add; "": they may add none.
      options: `coverage`, `sets`, `by_class` and `abstain` of `inference.load`.

    Raises:
      UserError: the address is in use, a limit is below 1, `lora_dir` is no folder, or
        the runs do not fit together.
    """
    _check(batching, limits)
    folder = AdapterSource.open(lora_dir, options) if lora_dir else None
    sizes = batch_sizes(batching.max_batch)
    with bound(host, port) as listener:
        # this function keeps no pool, whose runs have arrays on the device
        swaps = folder is not None
        server = server_of(
            open_pool(workdirs, sizes, swaps, **options),
            *(host, batching, limits, folder),
        )
        if host not in LOOPBACK:
            logging.warning(
                "there is no password, so anyone who reaches this address may ask"
            )
        listener.listen(2048)
        shown = f"[{host}]" if ":" in host else host
        where = f"http://{shown}:{listener.getsockname()[1]}"
        logging.info(
            "serving %s at %s (Ctrl-C stops)", ", ".join(names_of(workdirs)), where
        )
        _run(server, listener)
        logging.info("stopped")


def server_of(
    pool: AdapterPool,
    host: str,
    batching: Batching = Batching(),  # noqa: B008 (immutable)
    limits: Limits = Limits(),  # noqa: B008
    folder: AdapterSource | None = None,
) -> uvicorn.Server:
    """Compile every shape of every adapter, and return the server of the pool.

    Requests may add runs of the folder, if there is one.

    Raises:
      UserError: runs may be added, but no run of the pool can share batches.
    """
    entries = in_banks(pool, batching.max_loras, folder is not None)
    if folder is not None:
        if not entries:
            raise UserError(
                "--lora_dir needs a run that can share batches with those that are "
                f"added, but {', '.join(pool)} cannot; leave it out, or add such a run"
            )
        folder = folder.knowing(entries)
    # the pool has neither the arrays nor the answerers of what is in a bank
    pool = {n: entries[n].predictor if n in entries else one for n, one in pool.items()}
    makers = {
        name: TaskAdapters(one, batching.max_loras)
        for name, one in pool.items()
        if one.tasks is not None
    }
    seconds: Seconds = {}
    for name, one in pool.items():
        if name in makers:
            seconds[makers[name].bank] = makers[name].warm()
        elif name not in entries:
            seconds[name] = one.warm()
        elif entries[name].bank not in seconds:
            seconds[entries[name].bank] = entries[name].bank.warm(entries[name])
    meters = Meters()

    def compiled(event: str, *_: Any, **__: Any) -> None:
        meters.programs += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(compiled)
    sizes = (batching.window, batching.max_waiting)
    batcher = Batcher(pool, seconds, meters, *sizes, entries, makers)
    hosts = LOOPBACK if host in LOOPBACK else ()
    app = application(Service(pool, batcher, meters, limits, folder), hosts)
    return uvicorn.Server(_config(app))


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,  # of h11, which limits the size of headers, unlike httptools
        h11_max_incomplete_event_size=HEADERS,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the rate limit is by the address that connects
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE,
    )


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until a signal, and ignore it when uvicorn raises it again at the end."""
    # Only the main thread may set signal handlers.
    if threading.current_thread() is not threading.main_thread():
        server.run(sockets=[listener])
        return
    both = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(one, lambda *_: None) for one in both]
    try:
        server.run(sockets=[listener])
    finally:
        for one, handler in zip(both, before, strict=True):
            signal.signal(one, handler)


def bound(host: str, port: int) -> socket.socket:
    """Bind a socket before anything is loaded, because the port may be in use.

    Raises:
      UserError: the host is empty, which would be every address of the machine, or the
        address is not one of this machine or is in use.
    """
    if not host.strip():
        raise UserError(
            "--host is empty; expected an address, such as 127.0.0.1 for this machine "
            "alone or 0.0.0.0 for every address"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError, TypeError) as e:  # TypeError: not a name
        listener.close()
        why = getattr(e, "strerror", None) or e
        raise UserError(
            f"cannot listen at {host}:{port}: {why}; expected an address of this "
            "machine and a free port. --port=0 takes a free one"
        ) from e
    return listener


def _check(batching: Batching, limits: Limits) -> None:
    fields = batching._asdict() | limits._asdict()
    sizes = ("max_batch", "max_waiting", "max_loras")
    for name in (*sizes, "max_body", "max_texts", "max_chars"):
        if fields[name] < 1:
            raise UserError(f"--{name} is {fields[name]}; expected at least 1")
    for name in ("window", "rate"):
        if not 0 <= fields[name] < float("inf"):
            raise UserError(f"--{name} is {fields[name]:g}; expected at least 0")
