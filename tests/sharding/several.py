"""One process of several: what all of them are refused, then a run of all."""

import sys
from collections.abc import Callable

from etils import epath

from hypelora_jax import cli
from hypelora_jax.config.settings import DataConfig
from hypelora_jax.data import sources
from hypelora_jax.errors import UserError
from hypelora_jax.run import metric_writers
from hypelora_jax.run.metric_writers import Kind, Writer
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes


def show_refusal(what: Callable) -> None:
    """Prints the message that `what` is refused with; gloo prints there too."""
    try:
        what()
    except (UserError, OSError) as error:
        print("refused:", error, flush=True)


def file_of_one(folder: epath.Path) -> str:
    """A file that process 1 cannot read, and no other process asks for."""
    return "" if processes.is_main() else (folder / "missing").read_text()


def opened(run: Run, config: dict, step: int) -> Writer:
    """A writer that only says that it was opened."""
    print("writer opened", flush=True)
    return Writer(lambda *_: None, lambda *_: None, lambda ended: None)


if __name__ == "__main__":
    metric_writers.WRITERS["shown"] = Kind("json", "", opened)
    distributed, apart, *flags = sys.argv[1:]
    processes.initialize(distributed.removeprefix("--distributed="))
    folder = epath.Path(apart)
    show_refusal(lambda: processes.check_shared(folder, seconds=1.0))
    show_refusal(lambda: processes.together(lambda: file_of_one(folder)))
    wanted = DataConfig(source="tfds", task="rte", dir=apart)
    show_refusal(lambda: sources.load(wanted, seed=0))
    sys.exit(cli.main(["train", *flags]))
