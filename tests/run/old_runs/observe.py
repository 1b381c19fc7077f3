"""What the commands say of a finished run, and the losses of its training, as JSON.

`make.py` keeps what an earlier version says; the tests compare it with what is said of
the same folders now.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Call = Callable[..., str]  # arguments of `hypelora`; what it prints on stdout
WORK = "/old_runs"  # where all of them were made, and what they say of paths
TEXTS = ("the bonda duli", "dasu", "one other bindo however", "which donda a basu e")
NUMBERS = (
    *("n", "step", "members", "disagreement", "temperature", "value"),
    *("accuracy", "nll", "brier", "ece", "classwise_ece", "smooth_ece"),
    *("soft_tv", "mcc", "f1", "mse"),
)
FIRST = 4  # values of a tensor that are kept as they are


def observe(call: Call, here: Path, method: str | None, kind: str) -> dict[str, Any]:
    """What the commands say of the finished run HERE/run; they change that folder.

    `method` is what `calibrate` fits, after all else was looked at; None: nothing.
    `kind` is the format of `export`.
    """
    run, texts = here / "run", here / "texts.jsonl"
    rows = [{"text": a} for a in TEXTS]
    if method is None:  # the regression is one of pairs
        pairs = zip(TEXTS, reversed(TEXTS), strict=True)
        rows = [{"sentence1": a, "sentence2": b} for a, b in pairs]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: dict[str, Any] = {}
    seeds = sorted(path.name for path in run.glob("seed_*")) or [""]
    for at in (run / seed for seed in seeds):
        own = seen[at.name] = {}
        out = call("evaluate", f"--workdir={at}")
        own["validation"] = numbers(json.loads(out.splitlines()[-1]))
        call("predict", f"--workdir={at}", f"--input={texts}", f"--output={here}/out")
        rows = map(json.loads, (here / "out").read_text().splitlines())
        own["predict"] = [row.get("probs", row["label"]) for row in rows]
    how = (f"--output={here}/report.html", "--replicas=0", "--formats=csv")
    call("report", f"--workdir={run}", *how)
    seen["report"] = [
        [row["stage"], row["calibrator"], row["metric"], float(row["value"])]
        for row in csv.DictReader((here / "report.csv").read_text().splitlines())
        if row["metric"] in NUMBERS
    ]
    seen["export"] = exported(call, here, kind)
    for at in (run / seed for seed in seeds if method is not None):
        out = call("calibrate", f"--workdir={at}", f"--method={method}")
        held = json.loads(out.splitlines()[-1])
        seen[at.name]["calibrate"] = numbers(held["before"], held["after"])
    return seen


def numbers(*trees: dict[str, Any]) -> dict[str, float]:
    """Those of NUMBERS that nested metrics hold, by their path; intervals are left out.

    Conformal sets are left out too: equal texts tie with their threshold.
    """
    found: dict[str, float] = {}
    for i, tree in enumerate(trees):
        for name, value in tree.items():
            path = name if len(trees) == 1 else f"{i}/{name}"
            if isinstance(value, dict) and name != "conformal":
                found |= {f"{path}/{n}": x for n, x in numbers(value).items()}
            elif name in NUMBERS and value is not None:
                found[path] = value
    return found


def exported(call: Call, here: Path, kind: str) -> dict[str, Any]:
    """Digest of each tensor that `export` writes, by its folder and name."""
    target, digests = here / "export", {}
    how = (f"--output={target}", f"--format={kind}")
    call("export", f"--workdir={here}/run", *how)
    for file in sorted(target.rglob("*.safetensors")):
        tensors = load_file(file)
        if file.parent.name == "base":  # random weights: all of them as one
            tensors = {
                "all": np.concatenate([tensors[n].ravel() for n in sorted(tensors)])
            }
        for name, x in tensors.items():
            digests[f"{file.parent.relative_to(target)}/{name}"] = digest(x)
    return digests


def digest(x: np.ndarray) -> dict[str, Any]:
    """Shape, sum, sum of squares and first values of a tensor."""
    flat = x.astype(np.float64).ravel()
    sums = {"sum": float(flat.sum()), "squares": float((flat**2).sum())}
    return {"shape": list(x.shape), **sums, "first": flat[:FIRST].tolist()}


def losses(run: Path) -> list[list[float]]:
    """(step, loss) of each training step that metrics.jsonl holds."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [[row["step"], row["loss"]] for row in rows if row["split"] == "train"]


def placed(text: str, here: Path) -> str:
    """A text of a run, or an argument, with the paths of its copy in HERE."""
    return text.replace(f"{WORK}/", f"{here}/")
