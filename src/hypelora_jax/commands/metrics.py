"""Print the metrics of a file of predictions as one JSON object."""

from argparse import ArgumentParser

from hypelora_jax import files
from hypelora_jax.commands.shared import flags
from hypelora_jax.errors import UserError


def add_flags(parser: ArgumentParser) -> None:
    """Add the flags of the file, the intervals, the bins and the seed."""
    add = parser.add_argument
    add(
        "--predictions",
        action=flags.PathFlag,
        required=True,
        metavar="FILE",
        help=".npz, .csv, .tsv, .jsonl",
    )
    add("--replicas", type=int, default=0, help="bootstrap replicas; 0: no intervals")
    add("--level", type=float, help="level of the intervals; 0.95")
    add("--bins", type=int, default=10, help="bins of calibration errors; 10")
    add("--seed", type=int, default=0, help="seed of the replicas and drawn labels; 0")


def run(
    predictions: str, replicas: int, level: float | None, bins: int, seed: int
) -> None:
    """Print the metrics, with intervals if `replicas` is not 0."""
    if level is not None and not replicas:
        raise UserError(
            f"--level={level:g} is the level of intervals, which need replicas; "
            "expected --replicas=1000 as well, or no --level"
        )
    from hypelora_jax.evaluate.file_metrics import metrics_of_file

    if replicas:
        files.keep_compiled()
    level = 0.95 if level is None else level
    found = metrics_of_file(
        predictions, bins, replicas=replicas, level=level, seed=seed
    )
    print(files.to_json(found))
