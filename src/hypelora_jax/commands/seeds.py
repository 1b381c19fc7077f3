"""A run of several seeds: one run folder a seed, and their mean."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from hypelora_jax import files
from hypelora_jax.commands import single_run
from hypelora_jax.config.settings import Settings
from hypelora_jax.errors import UserError
from hypelora_jax.report import html
from hypelora_jax.run import records
from hypelora_jax.sharding import processes
from hypelora_jax.train import ensembles

Summary = dict[str, Any]


def claim(settings: Settings, workdir: str, path: epath.Path) -> None:
    """Check that the folder is for as many seeds as the settings say; record it.

    Raises:
      UserError: the folder holds one run and several are wanted, or the reverse, or it
        holds other seeds.
    """
    record = path / "seeds.json"
    if settings.num_seeds == 1:
        if record.exists():
            raise UserError(
                f"{workdir} holds a run of several seeds; choose another --workdir, or "
                "the num_seeds it was begun with"
            )
        return
    if (path / "config.json").exists():
        raise UserError(
            f"{path} holds a run of one seed; choose another --workdir for "
            f"num_seeds={settings.num_seeds}"
        )
    if record.exists():
        records.check_same(path, settings, records.read_json(record))
    processes.barrier("seeds.json is read")
    if processes.is_main() and not record.exists():
        files.write_json(record, {"config": records.as_dict(settings)})


def train(settings: Settings, path: epath.Path, progress: bool) -> Summary:
    """Train each seed in its own folder; their summaries, mean and deviation."""
    runs = [_train_one(settings, path, i, progress) for i in range(settings.num_seeds)]
    mean, std = (_over_seeds(runs, how) for how in (np.mean, _deviation))
    summary = {"seeds": runs, "mean": mean, "std": std}
    if processes.is_main():
        files.write_json(path / "summary.json", summary)
        report = path / "report" / "report.html"
        html.write_report([html.load(path)], report, replicas=0)
    processes.barrier("all seeds are done")
    return summary


def _train_one(settings: Settings, path: epath.Path, i: int, progress: bool) -> Summary:
    seed = settings.seed + i * ensembles.seeds(settings)
    settings = dataclasses.replace(settings, seed=seed, num_seeds=1)
    workdir = str(path / f"seed_{i}")
    own = processes.together(lambda: records.open_workdir(workdir))
    with single_run.locked(own):
        return single_run.train(settings, own, progress)


def _deviation(values: list[float]) -> float:
    return float(np.std(values, ddof=1))


def _over_seeds(
    runs: list[Summary], how: Callable[[list[float]], Any]
) -> dict[str, dict[str, float]]:
    """Metrics of each split, reduced over the seeds."""
    return {
        split: {
            name: float(how([run["metrics"][split][name] for run in runs]))
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        for split, metrics in runs[0]["metrics"].items()
    }
