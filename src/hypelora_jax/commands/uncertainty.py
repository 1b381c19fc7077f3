"""Judge a trained run by averaged predictions, in a run folder of its own."""

import json
from argparse import ArgumentParser
from typing import Any

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.config.sections import Link, UncertaintyConfig


def add_flags(parser: ArgumentParser) -> None:
    """The run, what its predictions average over, and the new folder."""
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
    add("--dropout", type=float, help="mc_dropout: every rate; those of training")
    about = "laplace: mean_field, probit or mc"
    add("--link", default="mean_field", help=about)
    flags.add_new_output(parser)


def run(
    workdir: str,
    kind: str,
    samples: int,
    dropout: float | None,
    link: Link,
    output: str,
) -> None:
    """Print the metrics of the new run folder as one JSON object."""
    files.keep_compiled()
    config = UncertaintyConfig(kind, samples, dropout, link)
    print(json.dumps(derive(workdir, output, config)["metrics"]))


def derive(workdir: str, output: str, config: UncertaintyConfig) -> dict[str, Any]:
    """Make a second run folder of a trained model, under another kind of uncertainty.

    The folder holds the chosen checkpoint and the curve of the first and is whole in
    itself: `evaluate`, `predict`, `calibrate` and `report` take it like any other, and
    it can be compared with the first one in a report. What the kind fits (the posterior
    of `laplace`) and the calibrator are fitted here, on train and calibration.

    Args:
      workdir: a trained run; it is only read.
      output: a folder that does not exist or is empty, or one begun by the same call,
        which then goes on; a finished one is left as it is.
      config: the kind and what belongs to it.

    Returns:
      what summary.json of the new folder holds, as `train` gives it.

    Raises:
      UserError: a kind that has to be trained, no such run, or data or weights other
        than it was trained on.
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
