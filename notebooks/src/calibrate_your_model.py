# %% [markdown]
# # Calibrate your model
#
# <!-- colab: calibrate_your_model -->
#
# A PEFT LoRA adapter or a fine-tuned classifier comes in, is judged and calibrated on
# labelled data, and leaves as a model whose plain softmax is calibrated. At the end,
# predictions are calibrated without any model. The first cell installs the package from
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
# BERT, RoBERTa, DistilBERT or XLM-RoBERTa base; `MODEL` is that base, if it is not the
# one the adapter names. `CLASSIFIER` is the folder or hub name of a whole classifier,
# such as a `BertForSequenceClassification`. Set one of them. `CONFIG` and `FLAGS` say
# which labelled data to judge by. For your own files:
#
#     CONFIG = "files:method=lora"
#     FLAGS = "--config.data.train=train.csv --config.data.validation=validation.csv"
#
# The data's labels are the names in the classifier's config.json, or their numbers. A
# share of train is the calibration split; nothing is trained. If both are empty, an
# adapter is made here: one epoch of LoRA on film reviews (two took 157 s on 2 CPU
# cores, docs/results.md, 2026-11-25), exported as PEFT saves it.

# %% tags=["parameters"]
ADAPTER = ""
MODEL = ""
CLASSIFIER = ""
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
if not ADAPTER and not CLASSIFIER:
    hypelora(
        f"train --config={CONFIG} --workdir={FOLDER}/trained {FLAGS} {TRAIN_FLAGS}"
    )
    ADAPTER = f"{FOLDER}/adapter"
    hypelora(f"export --workdir={FOLDER}/trained --format=peft --output={ADAPTER}")

# %% [markdown]
# ## In
#
# Either becomes a run folder at step 0, which can be evaluated, calibrated, served,
# trained on or exported again. A classifier gives its labels and its head.

# %%
RUN = f"{FOLDER}/run"
data = f"--config={CONFIG} {FLAGS}"
if CLASSIFIER:
    hypelora(f"import --model={CLASSIFIER} --workdir={RUN} {data}")
else:
    model = f"--model={MODEL}" if MODEL else ""
    hypelora(f"import --adapter={ADAPTER} {model} --workdir={RUN} {data}")
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
# with its head, divided in the same way.

# %%
hypelora(f"export --workdir={RUN} --format=merged --output={FOLDER}/model --calibrated")
if ADAPTER:
    hypelora(
        f"export --workdir={RUN} --format=peft --output={FOLDER}/peft --calibrated"
    )
print((Path(FOLDER) / "model" / "README.md").read_text())

# %% [markdown]
# If `transformers` is installed, this is all it takes:
#
#     from transformers import pipeline
#     folder = "runs/calibrate/model"
#     classify = pipeline("text-classification", folder, truncation=True)
#     classify("Better than the first one.")
#
# Its score is the calibrated confidence. On texts of another kind than the calibration
# split's it may be wrong again: label some hundred of them and calibrate again.
#
# ## A whole classifier
#
# The model that left is a classifier as any program saves it. It comes in by `--model`
# alone: its plain softmax already has the calibrated NLL.

# %%
hypelora(f"import --model={FOLDER}/model --workdir={FOLDER}/classifier {data}")
hypelora(f"evaluate --workdir={FOLDER}/classifier --split=validation")

# %% [markdown]
# ## Only predictions
#
# A calibrator needs logits or probabilities and labels, not a model. It is fitted on
# one file, applied to another, and judged on rows that it was not fitted on. Files of
# any program do: `.npz`, `.csv` or JSON lines (docs/calibrators.md).

# %%
SPLITS = f"{RUN}/eval"
hypelora(
    f"calibrate --predictions={SPLITS}/calibration/predictions.npz "
    f"--apply={SPLITS}/validation/predictions.npz --output={FOLDER}/calibrated.csv"
)
hypelora(f"metrics --predictions={FOLDER}/calibrated.csv")
