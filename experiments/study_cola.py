"""Compare learning rates, initialisations and seeds on CoLA, for docs/results.md.

    python experiments/study_cola.py --data=GLUE --workdir=runs/study_cola

GLUE is a folder with CoLA/train.tsv and CoLA/dev.tsv. Stage 1 is the sweep in
`configs/sweeps/cola.py`; stage 2 runs two more seeds at each method's best rate by
calibration NLL. Finished runs are kept, so a stopped command continues when it is
started again. It prints Markdown. Each run is a process of `hypelora train`; --jobs
says how many run at a time (one per core is fastest).
"""

import argparse
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np
from etils import epath

from hypelora_jax import files
from hypelora_jax.commands.shared.flags import PathFlag
from hypelora_jax.configs.sweeps import cola
from hypelora_jax.run.paths import Run

SHOWN = ("mcc", "accuracy", "nll", "ece")


def train(entry: dict, data: str, workdir: epath.Path) -> dict:
    """Train one entry if it is not finished, and return its summary."""
    fixed = {"data.source": "glue_dir", "data.dir": data, "optim.num_epochs": 3}
    # The method is an argument, so that the config sets what depends on it.
    config = cola.CONFIG.format(method=entry["method"])
    flags = [f"--config.{name}={value}" for name, value in (fixed | entry).items()]
    folder = workdir / "-".join(str(value) for value in entry.values())
    command = [sys.executable, "-m", "hypelora_jax.cli", "train"]
    command += [f"--config={config}", f"--workdir={folder}", *flags]
    if code := subprocess.run(command).returncode:
        sys.exit(code)  # the run has printed the reason
    return entry | files.read_json(Run.open(folder).summary_file)


def method(run: dict) -> tuple[str, str]:
    """Return the method and initialisation, which share one best learning rate."""
    return run["method"], run.get("hyper.init", "")


def rows(found: list[dict]) -> list[str]:
    """Return Markdown rows: each run, then mean and standard deviation over seeds."""
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


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action=PathFlag, required=True)
    parser.add_argument("--workdir", action=PathFlag, default="runs/study_cola")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    workdir = epath.Path(args.workdir)

    with ThreadPoolExecutor(args.jobs) as pool:

        def train_all(entries: Iterable[dict]) -> list[dict]:
            return list(pool.map(lambda e: train(e, args.data, workdir), entries))

        first = train_all(cola.sweep())
        best = [cola.best(list(g)) for _, g in groupby(first, method)]
        more = train_all(cola.more_seeds(best))
    print("\n".join(rows(first + more)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # each run has saved its state and printed that
        sys.exit(130)
