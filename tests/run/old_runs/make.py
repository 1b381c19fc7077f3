"""Run folders as an earlier version wrote them, with what it said of them.

    git worktree add ../old COMMIT && make -C ../old .venv/.test
    ../old/.venv/bin/python tests/run/old_runs/make.py --output=tests/run/old_runs

It uses the command line alone, so that it goes with any version: that of the Python
which runs it. The folders kept here are of commit a1cfcea.

    shared/               a tiny BERT with its vocabulary, and files of a regression
    finished/CASE.zip     a finished run; CASE.json beside it is what `observe` saw
    unfinished/CASE.zip   a run stopped on its way; CASE.json has the loss of every
                          step of the run that was not stopped

A run records absolute paths, in its checkpoints too, which are sealed. So all are made
in /old_runs, a folder that says nothing of a machine and must not exist before.
"""

import argparse
import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from observe import WORK, losses, observe
from safetensors.numpy import save_file

from hypelora_jax.cli import main as hypelora

WORDS = "a e the one other which however bonda bindo basu buli donda dindo dasu duli"
SMALL = (
    "--config.data.num_examples=32",
    "--config.data.max_length=24",
    "--config.optim.num_epochs=2",
    "--config.optim.batch_size=8",
    "--config.log.every_steps=1",
    "--config.hyper.widths=(6,)",
    "--config.hyper.cond_dim=4",
    "--config.hyper.width=8",
    "--config.hyper.heads=2",
    "--config.hyper.depth=1",
    "--config.hyper.ff=8",
    "--config.uncertainty.samples=2",
)
BERT = ("model.path=/old_runs/shared/base",)
LAST = ("select_on=last", "optim.num_epochs=1", "data.num_examples=64", "optim.lr=0.03")
BLEND = ("blend.alpha=0.5",)
PAIRS = tuple(
    f"data.{name}=/old_runs/shared/data/{name}.csv"
    for name in ("train", "calibration", "validation", "test")
)
# case: method, fields of the config, the calibrator that is fitted (None: the task
# has none, being a regression)
FINISHED: dict[str, tuple[str, tuple[str, ...], str | None]] = {
    "lora_some_layers": (
        "lora",
        (*LAST, "lora.layers=(1,)", "lora.targets=('q','down')", "lora.rank=3"),
        "platt_binner",
    ),
    "lora_regression": ("lora", (*LAST, *BERT, "data.source=files", *PAIRS), None),
    "lora_seeds": ("lora", (*LAST, *BERT, "num_seeds=2"), "temperature"),
    "lora_laplace_afterwards": ("lora", BERT, "temperature"),
    "frozen_a_mc_dropout": (
        "lora_frozen_a",
        (*LAST, "lora.rslora=True", "data.num_classes=3", "uncertainty.kind=mc_dropout")
        + ("uncertainty.dropout=0.2",),
        "vector",
    ),
    "frozen_a_deep_ensemble": (
        "lora_frozen_a",
        (*LAST, *BERT, "uncertainty.kind=deep_ensemble", "lora.targets='all-linear'"),
        "identity",
    ),
    "head_laplace": (
        "head",
        (*LAST, "data.num_classes=3", "uncertainty.kind=laplace"),
        "histogram",
    ),
    "full": ("full", (*LAST, *BERT), "platt_binner"),
    "mlp_generated": (
        "hyper_mlp",
        ("ckpt.keep=1", "hyper.layers=(1,)", "loss.temperature='learned'"),
        "temperature",
    ),
    "mlp_fixed_blended": (
        "hyper_mlp",
        (*LAST, *BERT, *BLEND, "hyper.a=fixed", "hyper.a_input=True", "blend.b=add")
        + ("blend.b_init=lora", "blend.anneal=linear"),
        "beta",
    ),
    "mlp_random": (
        "hyper_mlp",
        (*LAST, "hyper.a=random", "uncertainty.kind=random_a", "hyper.init=reference"),
        "identity",
    ),
    "mlp_hyper_ensemble": (
        "hyper_mlp",
        (*LAST, *BERT, "uncertainty.kind=hyper_ensemble"),
        "dirichlet",
    ),
    "transformer_blended": (
        "hyper_transformer",
        (*LAST, *BERT, *BLEND, "blend.a=add", "blend.anneal=reference"),
        "isotonic",
    ),
}
# case: method, fields of the config, the last step that is kept ("signal": a run that
# was sent SIGTERM); "unjudged" is the end of an epoch before it was evaluated
EVERY_3, EVERY_1 = "ckpt.every_steps=3", "ckpt.every_steps=1"
ALL, ONE = "ckpt.keep=9", "ckpt.keep=1"
UNFINISHED: dict[str, tuple[str, tuple[str, ...], int | str]] = {
    "full": ("full", (*BERT, "optim.lr=1e-3", EVERY_3, ALL), 3),
    "lora": ("lora", (EVERY_1, ONE, "lora.dropout=0.1"), "signal"),
    "lora_frozen_a": ("lora_frozen_a", (*BERT, "ckpt.every_steps=6"), 6),
    "head": ("head", ("uncertainty.kind=deep_ensemble",), "unjudged"),
    "hyper_mlp": (
        "hyper_mlp",
        (*BLEND, "hyper.a=random", "blend.b=add", "blend.anneal=linear", EVERY_3)
        + (ALL, "loss.temperature='learned'"),
        3,
    ),
    "hyper_transformer": (
        "hyper_transformer",
        (*BERT, "hyper.a=fixed", "hyper.cond=onehot", "hyper.init=reference", EVERY_1)
        + (ONE,),
        "signal",
    ),
    "hyper_ensemble": ("hyper_mlp", ("uncertainty.kind=hyper_ensemble",), 4),
}


def arguments(method: str, fields: tuple[str, ...]) -> list[str]:
    """Of `train`, without --workdir."""
    own = [f"--config.{field}" for field in fields]
    return [f"--config=smoke:method={method}", *SMALL, *own]


def make_finished(name: str, output: Path) -> None:
    """One of FINISHED: train, calibrate, keep the run, look at it."""
    method, fields, calibrator = FINISHED[name]
    given, run = arguments(method, fields), f"{WORK}/run"
    if name.endswith("_afterwards"):
        call("train", f"--workdir={WORK}/first", *given)
        how = ("--kind=laplace", f"--output={run}")
        call("uncertainty", f"--workdir={WORK}/first", *how)
    else:
        call("train", f"--workdir={run}", *given)
    if calibrator not in (None, "temperature"):  # training ends with a temperature
        call("calibrate", f"--workdir={run}", f"--method={calibrator}")
    _keep(output / name)
    kind = "merged" if method in ("full", "head") else "peft"
    seen = observe(call, Path(WORK), calibrator, kind)
    held = {"train": given, "calibrator": calibrator, "format": kind, "seen": seen}
    _write(output / name, held)


def make_unfinished(name: str, output: Path) -> None:
    """One of UNFINISHED: train to the end for the losses, keep what is half of it."""
    method, fields, stop = UNFINISHED[name]
    given, run = arguments(method, fields), Path(WORK, "run")
    command = ("train", f"--workdir={run}", *given)
    call(*command)
    wanted = losses(run)
    if stop == "signal":
        shutil.rmtree(run)
        _terminated(command, run)
    else:
        _cut(run, 4 if stop == "unjudged" else int(stop), stop != "unjudged")
    _keep(output / name)
    _write(output / name, {"train": given, "losses": wanted})


def _terminated(args: tuple[str, ...], run: Path) -> None:
    """Starts a run and sends it SIGTERM after a step or two."""
    command = [sys.executable, "-m", "hypelora_jax.cli", *args]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (run / "metrics.jsonl").exists() or len(losses(run)) < 2:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
    if process.returncode != 75:
        raise SystemExit(f"exit code {process.returncode}, not 75: call this again")


def _cut(run: Path, last: int, judged: bool) -> None:
    """Leaves what a kill after the checkpoint of a step would have left."""
    for path in (run / "checkpoints").iterdir():
        if int(path.name) > last:
            shutil.rmtree(path)
    if not judged:
        (run / f"checkpoints/{last}/selection.json").unlink()
    for path in (run / "eval", run / "report"):
        shutil.rmtree(path)
    for path in (run / "summary.json", run / "calibrator.json"):
        path.unlink()
    kept = []
    for line in (run / "metrics.jsonl").read_text().splitlines(keepends=True):
        row = json.loads(line)
        if row["step"] <= last and (judged or row["split"] == "train"):
            kept.append(line)
    (run / "metrics.jsonl").write_text("".join(kept))


def _keep(target: Path) -> None:
    """Packs the run, without what names the machine and without pictures."""
    run = Path(WORK, "run")
    for path in [*run.rglob(".lock"), *run.rglob("tb"), *run.rglob("report")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.make_archive(str(target), "zip", WORK, "run")


def _write(target: Path, held: dict[str, Any]) -> None:
    target.with_suffix(".json").write_text(json.dumps(held) + "\n")


def call(*args: str) -> str:
    """Runs one command; what it prints."""
    print("hypelora", *args, flush=True)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if code := hypelora(args):
            raise SystemExit(f"exit code {code}")
    return out.getvalue()


def write_shared(folder: Path) -> None:
    """The tiny BERT with random weights, and pairs of texts with a number each."""
    rng, words = np.random.default_rng(0), WORDS.split()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    d, f, base = 8, 12, folder / "base"
    names = {"embeddings.word_embeddings": (len(vocab), d)}
    names |= {"embeddings.position_embeddings": (24, d)}
    names |= {"embeddings.token_type_embeddings": (2, d), "embeddings.LayerNorm": (d,)}
    dense = {"attention.self.query": (d, d), "attention.self.key": (d, d)}
    dense |= {"attention.self.value": (d, d), "attention.output.dense": (d, d)}
    dense |= {"attention.output.LayerNorm": (d,), "intermediate.dense": (f, d)}
    dense |= {"output.dense": (d, f), "output.LayerNorm": (d,)}
    for layer in range(2):
        names |= {f"encoder.layer.{layer}.{n}": shape for n, shape in dense.items()}
    tensors = {}
    for name, shape in names.items():
        about = 1.0 if name.endswith("LayerNorm") else 0.0
        draw = about + 0.3 * rng.normal(size=shape)
        tensors[f"bert.{name}.weight"] = draw.astype(np.float32)
        if "_embeddings" not in name:
            bias = 0.1 * rng.normal(size=shape[:1])
            tensors[f"bert.{name}.bias"] = bias.astype(np.float32)
    base.mkdir(parents=True, exist_ok=True)
    save_file(tensors, base / "model.safetensors")
    fields = {"model_type": "bert", "vocab_size": len(vocab), "hidden_size": d}
    fields |= {"num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": f}
    fields |= {"max_position_embeddings": 24}
    (base / "config.json").write_text(json.dumps(fields, indent=1) + "\n")
    (base / "vocab.txt").write_text("".join(word + "\n" for word in vocab))
    (folder / "data").mkdir(exist_ok=True)
    for name, size in (
        ("train", 32),
        ("calibration", 20),
        ("validation", 20),
        ("test", 20),
    ):
        lines = ["sentence1,sentence2,label\n"]
        for _ in range(size):
            first, second = rng.choice(words, (2, 4))
            number = len({*first} & {*second}) + rng.normal()
            lines.append(f"{' '.join(first)},{' '.join(second)},{number:.3f}\n")
        (folder / "data" / f"{name}.csv").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder, as above")
    parser.add_argument("--only", nargs="*", help="cases, such as finished/full")
    args = parser.parse_args()
    output = Path(args.output)
    if not args.only:
        shutil.rmtree(output / "shared", ignore_errors=True)
        write_shared(output / "shared")
    jobs = [("finished", name, make_finished) for name in FINISHED]
    jobs += [("unfinished", name, make_unfinished) for name in UNFINISHED]
    for kind, name, make in jobs:
        if not args.only or f"{kind}/{name}" in args.only:
            shutil.copytree(output / "shared", f"{WORK}/shared")
            make(name, output / kind)
            shutil.rmtree(WORK)


if __name__ == "__main__":
    main()
