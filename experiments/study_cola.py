"""Learning rates, initialisations and seeds on CoLA; the table of docs/results.md.

    python experiments/study_cola.py --data=GLUE --workdir=runs/study_cola

GLUE holds CoLA/train.tsv and dev.tsv. Stage 1 is `configs/sweeps/cola.py`; stage 2
takes two more seeds at each method's best rate by calibration NLL. Finished runs are
kept, so the command goes on where it was stopped. Prints Markdown.
"""

import argparse
import sys
from itertools import groupby
from pathlib import Path

import numpy as np

from hypelora_jax import cli, runs, store
from hypelora_jax.configs.sweeps import cola
from hypelora_jax.exits import explain
from hypelora_jax.settings import from_dict

SHOWN = ("mcc", "accuracy", "nll", "ece")


def train(entry: dict, data: str, workdir: Path) -> dict:
    """Summary of one entry's run, trained now or before."""
    fixed = {"data.source": "glue_dir", "data.dir": data, "optim.num_epochs": 3}
    flags = [f"--config.{name}={value}" for name, value in (fixed | entry).items()]
    config = cli.load_config(cola.CONFIG, flags)
    name = "-".join(str(value) for value in entry.values())
    return entry | runs.train(from_dict(config.to_dict()), str(workdir / name))


def method(run: dict) -> tuple[str, str]:
    """What a learning rate is chosen for."""
    return run["method"], run.get("hyper.init", "")


def rows(found: list[dict]) -> list[str]:
    """Markdown rows: each run, then mean and standard deviation over seeds."""
    out = [
        "| method | init | lr | seed | MCC | accuracy | NLL | ECE | calibration NLL |"
    ]
    out.append("|" + "---|" * 9)
    found = sorted(found, key=lambda r: (method(r), r["optim.lr"], r["seed"]))
    for (name, init, lr), group in groupby(
        found, lambda r: (*method(r), r["optim.lr"])
    ):
        table = []
        for run in group:
            judged = run["metrics"]["validation"]["uncalibrated"]
            table.append([judged[n] for n in SHOWN] + [run["nll"]["calibration"]])
            cells = " | ".join(f"{x:.3f}" for x in table[-1])
            out.append(f"| {name} | {init} | {lr:g} | {run['seed']} | {cells} |")
        if len(table) > 1:
            pairs = zip(np.mean(table, 0), np.std(table, 0, ddof=1), strict=True)
            cells = " | ".join(f"**{m:.3f}** ± {s:.3f}" for m, s in pairs)
            out.append(f"| **{name}** | {init} | {lr:g} | mean | {cells} |")
    return out


def main() -> int:
    """Runs the study; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", type=Path, default=Path("runs/study_cola"))
    args = parser.parse_args()
    cli.log_to_stderr()
    store.keep_compiled()
    try:
        first = [train(entry, args.data, args.workdir) for entry in cola.sweep()]
        best = [cola.best(list(g)) for _, g in groupby(first, method)]
        more = [train(e, args.data, args.workdir) for e in cola.more_seeds(best)]
    except (Exception, KeyboardInterrupt) as error:
        code, line = explain(error)
        print(f"study_cola: {line}", file=sys.stderr)
        return code
    print("\n".join(rows(first + more)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
