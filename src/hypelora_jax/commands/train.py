"""Train a run, or go on with one that was stopped or imported."""

from argparse import ArgumentParser
from typing import Any

from absl import logging

from hypelora_jax import files
from hypelora_jax.commands import flags
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError


def add_flags(parser: ArgumentParser) -> None:
    """The config, which a run that goes on has already, and the run folder."""
    parser.add_argument(
        "--config",
        help="NAME[:ARG=VALUE,...] of an installed config, or the path of a config "
        "file; without it that of the run in --workdir, which goes on",
    )
    flags.add_workdir(parser)


def run(config: Settings | None, workdir: str) -> None:
    """Train into the folder; without a config, as the folder's own record says."""
    from hypelora_jax.run import records

    files.keep_compiled()
    if config is None:
        record = records.saved_record(records.absolute(workdir))
        if record is None:
            raise UserError(
                f"the following argument is required: --config ({workdir} holds no "
                "run to go on with); see hypelora train --help"
            )
        config = records.settings_of(record)
    train(config, workdir)


def train(settings: Settings, workdir: str, progress: bool = True) -> dict[str, Any]:
    """Train into a folder, or go on there; returns what summary.json holds.

    With num_seeds > 1 the seeds seed, seed + 1, ... are trained one after the other in
    workdir/seed_0, seed_1, ..., and the summary has their means. Deep ensembles take
    the seeds of their members in turn, so that no two share a member.

    Raises:
      UserError: a setting that cannot be had, or the folder holds another run, is in
        use, or cannot be written.
      KeyboardInterrupt, Preempted: asked to stop; the same call goes on.
    """
    from hypelora_jax.commands import names, seeds, single_run
    from hypelora_jax.run import records
    from hypelora_jax.sharding import processes
    from hypelora_jax.train.interruption import StopRequest

    names.check(settings)
    settings = records.located(settings)
    if not processes.is_main():
        logging.set_verbosity(logging.WARNING)
    path = processes.together(lambda: records.open_workdir(workdir))
    processes.check_shared(path)
    several = settings.num_seeds > 1
    train_all = seeds.train if several else single_run.train
    # at_once: the training loop has a request of its own, which saves before it stops
    with single_run.locked(path), StopRequest(at_once=True):
        seeds.claim(settings, workdir, path)
        return train_all(settings, path, progress)
