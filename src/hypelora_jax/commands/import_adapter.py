"""Make a run folder from a peft adapter, to use, calibrate, train further or export."""

from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.config.settings import Settings


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the adapter, its base model, and the run folder to make."""
    add = parser.add_argument
    add(
        "--adapter",
        required=True,
        metavar="DIR",
        help="folder with adapter_config.json and adapter_model.safetensors",
    )
    add(
        "--model",
        default="",
        metavar="PATH",
        help="base model; by default the one that the adapter names",
    )
    flags.add_workdir(parser)
    add(
        "--config",
        help="as in train; by default that of the run or export, if there is one",
    )
    add(
        "--factors",
        default="",
        metavar="FILE",
        help=".npz of A, initial_A and initial_B, which the reference does not save",
    )
    flags.add_offline(parser)


def run(
    adapter: str, model: str, workdir: str, config: Settings | None, factors: str
) -> None:
    """Import the adapter and print the new run folder."""
    from hypelora_jax.commands.shared import names
    from hypelora_jax.exchange import imports

    if config is not None:
        names.check(config)
    files.keep_compiled()
    print(imports.import_adapter(adapter, workdir, model, config, factors))
