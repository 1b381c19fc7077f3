"""Serve predictions over HTTP for one run, or for several that share a backbone."""

from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.errors import UserError


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the runs, the address, batching, limits, and answers."""
    flags.add_workdirs(parser)
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 127.0.0.1 (the default) is this machine alone",
    )
    add("--port", default=8000, type=int, help="8000; 0 takes a free one")
    add(
        "--max_batch",
        default=32,
        type=int,
        help="most texts in a batch; 32. 1: no batching",
    )
    add(
        "--window_ms",
        default=2.0,
        type=float,
        help="milliseconds that a text waits for others; 2",
    )
    add(
        "--max_loras",
        default=32,
        type=int,
        help="most adapters of one shape on the device; 32. Others wait on the host",
    )
    flags.add_path(
        parser,
        "--lora_dir",
        "DIR",
        "requests may load runs from below this folder; off without it",
    )
    _add_limits(parser)
    flags.add_answers(parser)
    flags.add_offline(parser)


def _add_limits(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--max_waiting", default=1024, type=int, help="texts in the queue; 1024")
    add("--max_body", default=1 << 20, type=int, help="bytes of a body; 1 MiB")
    add("--max_texts", default=256, type=int, help="most texts in a request; 256")
    add("--max_chars", default=10_000, type=int, help="characters of a text; 10000")
    add(
        "--rate",
        default=1000.0,
        type=float,
        help="requests a second from one address; 1000. 0: no limit",
    )


def run(
    workdirs: list[str],
    host: str,
    port: int,
    max_batch: int,
    window_ms: float,
    max_loras: int,
    lora_dir: str,
    max_waiting: int,
    max_body: int,
    max_texts: int,
    max_chars: int,
    rate: float,
    abstain: float | None,
    coverage: float | None,
    sets: str | None,
    by_class: bool,
) -> None:
    """Serve until the process is asked to stop."""
    flags.check_sets(coverage, sets, by_class)
    try:
        from hypelora_jax.serve import server
        from hypelora_jax.serve.limits import Limits
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("hypelora_jax"):
            raise
        raise UserError(
            f"serve needs {e.name}, which is not installed; install the extra with "
            "pip install 'hypelora-jax[serve]'"
        ) from e

    files.keep_compiled()
    server.serve(
        workdirs,
        host,
        port,
        server.Batching(max_batch, window_ms / 1000, max_waiting, max_loras),
        Limits(max_body, max_texts, max_chars, rate),
        lora_dir,
        abstain=abstain,
        coverage=coverage,
        sets=sets or "thr",
        by_class=by_class,
    )
