# %% [markdown]
# # Calibrate your adapter
#
# <!-- colab: calibrate_your_adapter -->
#
# A PEFT LoRA adapter comes in, is judged and calibrated on labelled data, and leaves
# as a model whose plain softmax is calibrated. The first cell installs the package from
# the checkout this notebook lies in, else from `HYPELORA_REPO`.

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
# `ADAPTER` is a folder with `adapter_config.json` and `adapter_model.safetensors`, of a
# BERT, RoBERTa, DistilBERT or XLM-RoBERTa base; `MODEL` that base, where it is not the
# one the adapter names. `CONFIG` and `FLAGS` say which labelled data to judge by. For
# your own files:
#
#     CONFIG = "files"
#     FLAGS = "--config.data.train=train.csv --config.data.validation=validation.csv"
#
# A share of train is the calibration split; nothing is trained. Left empty, `ADAPTER`
# is made here: one epoch of LoRA on film reviews (two took 157 s on 2 CPU cores,
# docs/results.md, 2026-11-25), exported as PEFT saves it.

# %% tags=["parameters"]
ADAPTER = ""
MODEL = ""
CONFIG = "demo:method=lora"
FLAGS = ""
TRAIN_FLAGS = "--config.optim.num_epochs=1"  # of the adapter that is made here
FOLDER = "runs/calibrate"
METHODS = ("temperature", "vector", "isotonic")

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


# %%
if not ADAPTER:
    hypelora(
        f"train --config={CONFIG} --workdir={FOLDER}/trained {FLAGS} {TRAIN_FLAGS}"
    )
    ADAPTER = f"{FOLDER}/adapter"
    hypelora(f"export --workdir={FOLDER}/trained --format=peft --output={ADAPTER}")

# %% [markdown]
# ## In
#
# The adapter becomes a run folder: static LoRA at step 0, which can be evaluated,
# calibrated, trained on or exported again.

# %%
RUN = f"{FOLDER}/run"
model = f"--model={MODEL}" if MODEL else ""
hypelora(
    f"import --adapter={ADAPTER} {model} --workdir={RUN} --config={CONFIG} {FLAGS}"
)
hypelora(f"calibrate --workdir={RUN} --method=identity")

# %% [markdown]
# As it is, on the validation split. Below the diagonal: too sure of itself.

# %%
from hypelora_jax.report import figures, reliability, series


def diagram() -> Png:
    """Reliability on the validation split, before and after the calibrator in use."""
    panel = reliability.panel_of(series.load(RUN), "validation")
    return Png(figures.png(reliability.diagram([panel])))


diagram()

# %% [markdown]
# ## Calibrate
#
# Each method is fitted on the calibration split, then compared with none on the
# validation split, with 95 % bootstrap intervals; p is that of the change. The more a
# method can bend, the more examples it needs. Judge by NLL and Brier score.

# %%
for method in METHODS:
    hypelora(f"calibrate --workdir={RUN} --method={method}")
    hypelora(f"calibrate --workdir={RUN} --method=identity")

# %% [markdown]
# Only a temperature can be built into the weights of the head, so that is what leaves.

# %%
hypelora(f"calibrate --workdir={RUN} --method=temperature")
diagram()

# %% [markdown]
# ## Out
#
# `merged` is a whole model for `transformers`, with tokenizer and model card;
# `--calibrated` divides the head's last layer by the temperature. `peft` is the adapter
# with its head, which the division does just as well.

# %%
hypelora(f"export --workdir={RUN} --format=merged --output={FOLDER}/model --calibrated")
hypelora(f"export --workdir={RUN} --format=peft --output={FOLDER}/peft --calibrated")
print((Path(FOLDER) / "model" / "README.md").read_text())

# %% [markdown]
# Where `transformers` is installed, that is all there is to it:
#
#     from transformers import pipeline
#     folder = "runs/calibrate/model"
#     classify = pipeline("text-classification", folder, truncation=True)
#     classify("Better than the first one.")
#
# Its score is the calibrated confidence. On texts of another kind than the calibration
# split's it may be wrong again: label some hundred of them and come back.
