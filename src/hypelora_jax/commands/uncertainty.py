"""Evaluate a trained run with averaged predictions, in a new run folder."""

from argparse import ArgumentParser
from typing import Any

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.config.sections import Link, UncertaintyConfig


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the run, the kind of uncertainty, and the new folder."""
    from hypelora_jax.evaluate.averaging import KINDS

    flags.add_workdir(parser)
    add = parser.add_argument
    add(
        "--kind",
        required=True,
        choices=tuple(name for name, kind in KINDS.items() if kind.derived),
        help="what predictions average over; docs/uncertainty.md",
    )
    add("--samples", type=int, default=5, help="members K; 5")
    add(
        "--dropout",
        type=float,
        help="mc_dropout: one rate for all; by default as trained",
    )
    about = "laplace: mean_field, probit or mc"
    add("--link", default="mean_field", help=about)
    flags.add_new_output(parser)
    flags.add_offline(parser)


def run(
    workdir: str,
    kind: str,
    samples: int,
    dropout: float | None,
    link: Link,
    output: str,
) -> None:
    """Make the new run folder and print its metrics as one JSON object."""
    files.keep_compiled()
    config = UncertaintyConfig(kind, samples, dropout, link)
    print(files.to_json(derive(workdir, output, config)["metrics"]))


def derive(workdir: str, output: str, config: UncertaintyConfig) -> dict[str, Any]:
    """Make a second run folder from a trained model, with another kind of uncertainty.

    The new folder has copies of the first run's chosen checkpoint and training curve,
    so `evaluate`, `predict`, `calibrate` and `report` accept it like any other run, and
    a report can compare the two. This function fits the posterior of `laplace` and the
    calibrator, on the train and calibration splits.

    Args:
      workdir: a trained run; it is only read.
      output: a folder that does not exist or is empty. A folder that the same call
        began is continued, and a finished one is not changed.
      config: the kind of uncertainty and its fields.

    Returns:
      The content of the new folder's summary.json, in the form that `train` returns.

    Raises:
      UserError: the kind has to be trained, the run does not exist, or its data or
        weights have changed.
    """
    from hypelora_jax.commands.shared import closing
    from hypelora_jax.evaluate import derivation
    from hypelora_jax.run import lock
    from hypelora_jax.run.paths import Run

    derived = derivation.open_derivation(workdir, output, config)
    folder = Run.create(output)
    with lock.hold(folder):
        if (finished := derivation.finished(derived)) is not None:
            return finished
        return closing.close(folder, derivation.fill(derived))
