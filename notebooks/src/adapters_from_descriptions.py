# %% [markdown]
# # Adapters from descriptions
#
# <!-- colab: adapters_from_descriptions -->
#
# A network reads what a task asks, in words, and writes a LoRA adapter that answers it.
# It is trained on 24 yes/no tasks, audited on four that were held out, and then asked
# something else. docs/described.md says what it reached.

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
# `ONLY` are attributes of sentences; each makes a task and its negation. `FLAGS` are
# fields of the config `tasks`.

# %% tags=["parameters"]
ONLY = ["positive", "movie_reviews", "tweets", "quotation", "apostrophe", "negation"]
ONLY += ["ends_period", "word_but", "word_and", "link"]  # both forms train
ONLY += ["number", "comma", "exclamation", "film"]  # one form is held out
FLAGS = "--config.optim.num_epochs=1 --config.tasks.steps=400"
WORKDIR = "runs/descriptions"
DESCRIPTION = "Does the text contain an exclamation mark?"
TEXTS = ["What a day!", "What a day."]

# %%
import shlex

from hypelora_jax import cli

FOLDER = Path(WORKDIR).resolve()


def hypelora(line: str) -> None:
    """One command, as in a terminal, in this process: programs are compiled once."""
    if code := cli.main(shlex.split(line)):
        raise RuntimeError(f"hypelora {line}: exit code {code}")


class Png(bytes):
    """A picture that a notebook shows."""

    def _repr_png_(self) -> bytes:
        return bytes(self)


# %% [markdown]
# ## A set of tasks
#
# All tasks ask something about the same sentences, so only the description of a task
# tells what is asked.

# %%
if not (FOLDER / "questions").exists():
    writing = [
        sys.executable,
        "-m",
        "experiments.relabelling",
        f"--only={','.join(ONLY)}",
    ]
    subprocess.run([*writing, f"--output={FOLDER / 'questions'}"], cwd=ROOT, check=True)

# %% [markdown]
# ## Train
#
# The sign lets a description and its negation share an adapter. Run the cell again
# after an interruption: it goes on where it was stopped.

# %%
TASKS = f"--config.tasks.file={FOLDER / 'questions' / 'tasks.yaml'}"
SIGN = "--config.condition.sign=5"
hypelora(f"train --config=tasks --workdir={FOLDER / 'reader'} {TASKS} {SIGN} {FLAGS}")

# %% [markdown]
# ## Does it read the descriptions?
#
# The right description against those of other tasks, against nonsense, and against one
# adapter for all tasks, on tasks that were held out.

# %%
hypelora(f"audit --workdir={FOLDER / 'reader'} --train_static={FOLDER / 'one'}")

# %% [markdown]
# How sure is it about tasks that it never trained on? Points on the diagonal are
# calibrated, points below it too sure.

# %%
hypelora(f"evaluate --workdir={FOLDER / 'reader'} --split=held_out_test")

from hypelora_jax.report import figures, reliability, series

panel = reliability.panel_of(series.load(FOLDER / "reader"), "held_out_test")
Png(figures.png(reliability.diagram([panel])))

# %% [markdown]
# ## Ask something else
#
# Near training descriptions the confidence has been measured; far from them it has not.

# %%
import hypelora_jax

reader = hypelora_jax.load(str(FOLDER / "reader"))
described = reader.adapter(DESCRIPTION)
print(f"nearest task {described.nearest}, distance {described.distance:.2f}")
for text, answer in zip(TEXTS, described.predict(TEXTS), strict=True):
    print(f"{answer['confidence']:.2f}", answer["label"], text)

# %% [markdown]
# The adapter as a folder, for `predict`, `serve` and `export`:

# %%
described.save(str(FOLDER / "described"))
