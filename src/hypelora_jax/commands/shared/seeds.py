"""A run of several seeds: one run folder per seed, and the mean over seeds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from hypelora_jax import files
from hypelora_jax.commands.shared import continuation
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.run import records
from hypelora_jax.run.paths import Run
from hypelora_jax.sharding import processes

Summary = dict[str, Any]


def claim(settings: Settings, workdir: str, folder: Run) -> Settings:
    """Check that the folder is for the seeds in the settings, and record them.

    Returns the settings that the seeds are trained with.

    Raises:
      UserError: the folder contains one run and several are wanted, or the reverse, or
        it contains other seeds.
    """
    record = folder.seeds_file
    if settings.num_seeds == 1:
        if record.exists():
            raise UserError(
                f"{workdir} has a run of several seeds; choose another --workdir, or "
                "give the num_seeds it was started with"
            )
        return settings
    if folder.config_file.exists():
        raise UserError(
            f"{folder.path} has a run of one seed; choose another --workdir for "
            f"num_seeds={settings.num_seeds}"
        )
    if record.exists():
        settings = records.check_same(folder.path, settings, files.read_json(record))
    # Process 0 may write the file only after every process has looked for it.
    processes.barrier("seeds.json is read")
    if processes.is_main() and not record.exists():
        files.write_json(record, {"config": records.as_dict(settings)})
    return settings


def train(
    settings: Settings, folder: Run, train_one: Callable[[Settings, Run], Summary]
) -> Summary:
    """Train each seed in its own folder; return summaries, mean and deviation."""
    from hypelora_jax.report import html, series  # local, as in `closing`

    runs = []
    for i in range(settings.num_seeds):
        # A deep ensemble of K members uses K seeds, so each run starts K seeds later.
        seed = settings.seed + i * settings.uncertainty.seeds
        one = dataclasses.replace(settings, seed=seed, num_seeds=1)
        own = processes.together(functools.partial(Run.create, folder.seed(i).path))
        with continuation.locked(own):
            runs.append(train_one(one, own))
    mean, std = (
        _over_seeds(runs, how) for how in (np.mean, functools.partial(np.std, ddof=1))
    )
    summary = {"seeds": runs, "mean": mean, "std": std}
    if processes.is_main():
        files.write_json(folder.summary_file, summary)
        rows = [series.load(folder.path)]
        html.write_report(rows, folder.report_file, replicas=0)
    # No process may go on before process 0 has written the summary.
    processes.barrier("all seeds are done")
    return summary


def _over_seeds(
    runs: list[Summary], how: Callable[[list[float]], Any]
) -> dict[str, dict[str, float]]:
    """Reduce the metrics of each split over the seeds with `how`."""
    return {
        split: {
            name: float(how([run["metrics"][split][name] for run in runs]))
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        for split, metrics in runs[0]["metrics"].items()
    }
