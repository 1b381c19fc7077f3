"""Make a run folder from a peft adapter or a classifier, to use, calibrate or train."""

from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the adapter or the classifier, and of the run folder to make."""
    add = parser.add_argument
    about = "folder with adapter_config.json and adapter_model.safetensors"
    flags.add_path(parser, "--adapter", "DIR", about)
    add(
        "--model",
        action=flags.PathFlag,
        expected=files.MODEL,
        default="",
        metavar="PATH",
        help="base model, by default the one that the adapter names; without --adapter "
        "a fine-tuned classifier, a folder or a hub name",
    )
    flags.add_workdir(parser)
    add(
        "--config",
        help="as in train; by default that of the run or export, if there is one",
    )
    about = ".npz of A, initial_A and initial_B, which the reference does not save"
    flags.add_path(parser, "--factors", "FILE", about)
    flags.add_offline(parser)


def run(
    adapter: str, model: str, workdir: str, config: Settings | None, factors: str
) -> None:
    """Import the adapter, or the classifier, and print the new run folder."""
    from hypelora_jax.commands.shared import names
    from hypelora_jax.exchange import classifiers, imports

    if not adapter and not model:
        raise UserError(
            "import got neither --adapter nor --model; expected --adapter=DIR of a "
            "peft adapter, or --model=PATH of a fine-tuned classifier"
        )
    if factors and not adapter:
        raise UserError(
            f"--factors={factors} is of an adapter; expected --adapter=DIR too, or no "
            "--factors"
        )
    if config is not None:
        names.check(config)
    files.keep_compiled()
    if adapter:
        path = imports.import_adapter(adapter, workdir, model, config, factors)
    else:
        path = classifiers.import_classifier(model, workdir, config)
    print(path)
