# %% [markdown]
# # Reproduce HypeLoRA
#
# <!-- colab: reproduce_hypelora -->
#
# The paper's table at a budget of your choice, ours beside theirs, with figure 2 and
# reliability diagrams. The first cell installs the package from the checkout this
# notebook lies in, else from `HYPELORA_REPO`, for the accelerator it finds: TPU, GPU,
# else CPU.

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
# - `TABLE`: `"2"`, LoRA and the hyper-networks; `"1"`, full fine-tuning and LoRA.
# - `BACKBONE`: `"roberta_base"` is the paper's; `"minilm"` learns on a CPU.
# - `BUDGET`: minutes for the whole table, divided among its rows; `0` runs the paper's
#   own lengths (80 epochs of RoBERTa-base and three seeds a row: for a GPU or TPU).
# - `DATA`: `"tfds"` downloads GLUE; else a folder in GLUE's own TSV layout.
#
# Started again with the same choices, nothing that is finished is run again.

# %% tags=["parameters"]
TABLE = "2"
BACKBONE = "minilm"
BUDGET = 30
DATA = "tfds"
WORKDIR = "runs/paper"
MORE = []  # further flags: ["--tasks=sst2", "--rows=lora,hyper_mlp_generated"]

# %%
import runpy

import jax

print(jax.default_backend(), jax.devices())
sys.path.append(str(ROOT / "experiments"))  # what the script imports stands beside it


def reproduce(table: str) -> None:
    """experiments/reproduce.py in this process, which holds the TPU if there is one."""
    script = str(ROOT / "experiments" / "reproduce.py")
    flags = [f"--table={table}", f"--backbone={BACKBONE}", f"--budget={BUDGET}"]
    flags += [f"--data={DATA}", f"--workdir={WORKDIR}", *MORE]
    before, sys.argv = sys.argv, [script, *flags]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{script} {flags}: exit code {end.code}") from None
    finally:
        sys.argv = before


class Png(bytes):
    """A picture that a notebook shows."""

    def _repr_png_(self) -> bytes:
        return bytes(self)


# %% [markdown]
# ## The table
#
# Ours with 95 % intervals, the paper's beside it. With a budget the runs are far
# shorter than the paper's and the backbone may be smaller: look at the order of the
# rows, not at their height.

# %%
reproduce(TABLE)

# %% [markdown]
# ## Figure 2
#
# Score and calibration error over epochs: of the runs above, and the paper's.

# %%
reproduce("figure2")
Png((Path(WORKDIR) / "figure2.png").read_bytes())

# %% [markdown]
# ## Reliability
#
# Confidence against accuracy on the validation split, before and after temperature
# scaling.

# %%
from hypelora_jax.report import figures, reliability, series

runs = sorted(path.parent for path in Path(WORKDIR).glob("*/*/summary.json"))
panels = [
    reliability.panel_of(
        series.load(run)._replace(name=f"{run.parent.name}, {run.name}"), "validation"
    )
    for run in runs
]
Png(figures.png(reliability.diagram([panel for panel in panels if panel])))
