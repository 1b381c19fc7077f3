"""Compare kinds of uncertainty on rated film sentences, with intervals.

    python experiments/uncertainty.py --workdir=runs/uncertainty
    python experiments/uncertainty.py --workdir=runs/tiny --config=smoke --samples=3

MC dropout and Laplace are chosen after training, so they share LoRA's run. The deep
ensemble, the hyper-ensembles and random A are trained. The script writes uncertainty.md
and uncertainty.json; if it was stopped, the same command continues. docs/uncertainty.md
explains each kind.
"""

import argparse
import sys
from typing import Any

import numpy as np
from etils import epath
from rich.console import Console

from hypelora_jax import cli, files
from hypelora_jax.calibration.calibrators import softmax
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.commands.train import train as train_run
from hypelora_jax.commands.uncertainty import derive
from hypelora_jax.config.settings import UncertaintyConfig, from_dict
from hypelora_jax.report import metric_tables as tables
from hypelora_jax.run.paths import Run

# Row: (config arguments, kind, source of conditions).
TRAINED = {
    "LoRA": ("method=lora", "none", "none"),
    "LoRA, deep ensemble": ("method=lora", "deep_ensemble", "none"),
    "HypeLoRA": ("method=hyper_mlp", "none", "none"),
    "HypeLoRA, hyper-ensemble": ("method=hyper_mlp", "hyper_ensemble", "none"),
    "HypeLoRA, noise": ("method=hyper_mlp", "hyper_ensemble", "noise"),
    "HypeLoRA, random A": ("method=hyper_mlp,a=random", "random_a", "none"),
}
AFTERWARDS = {"LoRA, MC dropout": "mc_dropout", "LoRA, Laplace": "laplace"}
ORDER = ("LoRA", *AFTERWARDS, *list(TRAINED)[1:])
ABOUT = ("members", "trained_parameters", "train_seconds", "disagreement")
SHOWN = ("accuracy", "nll", "ece", "brier")


def intervals(probs_NY: np.ndarray, label_N: np.ndarray) -> dict[str, dict[str, float]]:
    """Return each metric with its 95 % interval over 1,000 bootstrap replicas."""
    from hypelora_jax.calibration import bootstrap

    return bootstrap.intervals(probs_NY, label_N, replicas=1000, seed=0, names=SHOWN)


def train(config: str, overrides: list[str], samples: int, workdir: epath.Path) -> dict:
    """Train the rows that are not finished, and return all their summaries."""
    out = {}
    for name, (argument, kind, source) in TRAINED.items():
        flags = [f"--config.uncertainty.kind={kind}", *overrides]
        flags.append(f"--config.uncertainty.samples={samples}")
        flags.append(f"--config.condition.source={source}")
        settings = from_dict(cli.load_config(f"{config}:{argument}", flags).to_dict())
        out[name] = train_run(settings, str(workdir / folder_of(name)))
    return out


def judge_afterwards(samples: int, workdir: epath.Path) -> dict:
    """Evaluate LoRA's run with the other kinds, and return their summaries."""
    trained = str(workdir / folder_of("LoRA"))
    return {
        name: derive(
            trained,
            str(workdir / folder_of(name)),
            UncertaintyConfig(kind=kind, samples=samples),
        )
        for name, kind in AFTERWARDS.items()
    }


def folder_of(name: str) -> str:
    """Return the name of a row's folder."""
    return name.lower().replace(", ", "-").replace(" ", "_")


def row(path: epath.Path, summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the test metrics by stage: averaged, and after temperature scaling."""
    metrics = files.read_json(Run.open(path).metrics_file("test"))
    about = {n: summary[n] for n in ("trained_parameters", "train_seconds")}
    about["train_seconds"] = round(about["train_seconds"])
    about |= metrics.get("uncertainty", {"members": 1})
    with np.load(Run.open(path).predictions_file("test")) as held:
        logits_NY, label_N = held["logits"].astype(np.float64), held["labels"]
    stages = {"averaged": metrics["uncalibrated"], "calibrated": metrics}
    return {
        stage: about | intervals(softmax(logits_NY, found["temperature"]), label_N)
        for stage, found in stages.items()
    }


def table(
    config: str, overrides: list[str], samples: int, workdir: epath.Path
) -> list[tables.Table]:
    """Train and evaluate all rows; return a table of the test split for each stage."""
    summaries = train(config, overrides, samples, workdir)
    summaries |= judge_afterwards(samples, workdir)
    rows = {name: row(workdir / folder_of(name), summaries[name]) for name in ORDER}
    files.write_json(workdir / "uncertainty.json", rows)
    titles = {"averaged": "averaged probabilities", "calibrated": "and a temperature"}
    return [
        tables.of_metrics(
            f"test, {title}",
            {name: stages[stage] for name, stages in rows.items()},
            (*ABOUT, *SHOWN),
        )
        for stage, title in titles.items()
    ]


def run(config: str, overrides: list[str], samples: int, workdir: epath.Path) -> None:
    """Run the experiment, and print and write its tables."""
    made = table(config, overrides, samples, workdir)
    text = "\n".join(f"{one.title}\n\n{tables.to_markdown(one)}" for one in made)
    files.write_whole(workdir / "uncertainty.md", text)
    for one in made:
        Console(width=200).print(tables.to_rich(one))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", action=PathFlag, default="runs/uncertainty")
    parser.add_argument("--config", default="demo")
    parser.add_argument("--samples", type=int, default=5)
    args, overrides = parser.parse_known_args()
    work = (args.config, overrides, args.samples, epath.Path(args.workdir))
    sys.exit(cli.launch(__file__, lambda: run(*work)))
