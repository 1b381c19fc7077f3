"""The direction of imports, read from the source: lower layers never import upper."""

import ast
import subprocess
import sys

import pytest
import source_tree

import hypelora_jax

RANK = {unit: rank for rank, layer in enumerate(source_tree.LAYERS) for unit in layer}
# Metrics and calibrators see arrays only: they are of use without the rest.
CALIBRATION_SEES = {"types", "errors", "config"}
ONLY_IN = {
    "ml_collections": {"config"},
    "absl.flags": {"config"},
    "argparse": {"cli", "commands"},
    "flax.linen": {"families", "hyper"},
    "torch": set(),
    "transformers": set(),
    "peft": set(),
    "sentence_transformers": set(),
    "tensorflow": set(),
    "pickle": set(),
    "fastapi": {"serve"},
    "uvicorn": {"serve"},
}


def complaints(unit: str, source: str) -> list[str]:
    """What is wrong with the imports of a file of the unit (folder or module)."""
    wrong = []
    for name in sorted(source_tree.imported(ast.parse(source))):
        if name.startswith("."):
            wrong.append(f"{name}: relative; write hypelora_jax.x")
        for package, units in ONLY_IN.items():
            if f"{name}.".startswith(f"{package}.") and unit not in units:
                wrong.append(f"{name}: allowed in {sorted(units) or 'no file'}")
        if not name.startswith("hypelora_jax."):
            continue
        other = name.split(".")[1]
        if other not in RANK:
            if other not in ("configs", "__version__"):
                wrong.append(f"{name}: not in LAYERS")
        elif other != unit and RANK[other] >= RANK[unit]:
            wrong.append(f"{name}: {other} is not below {unit}")
        elif unit == "calibration" and other not in {unit, *CALIBRATION_SEES}:
            wrong.append(f"{name}: calibration sees arrays and types only")
    return wrong


@pytest.mark.parametrize("path", source_tree.files(), ids=source_tree.module_of)
def test_imports_point_down(path):
    unit = source_tree.unit_of(source_tree.module_of(path))
    if unit == "__init__":
        # for type checkers: at run time each is imported when it is first used
        tree = ast.parse(path.read_text())
        own = {n for n in source_tree.imported(tree) if n.startswith("hypelora_jax")}
        lazy = hypelora_jax._MODULES.items()
        assert own == {f"hypelora_jax.{module}.{name}" for name, module in lazy}
        assert [*hypelora_jax._MODULES] == hypelora_jax.__all__
        return
    assert unit in RANK, f"{unit} is in no layer; add it to LAYERS"
    assert complaints(unit, path.read_text()) == []


@pytest.mark.parametrize(
    ("unit", "line"),
    [
        ("types", "from hypelora_jax import trees"),
        ("families", "from hypelora_jax.hyper.mlp import mlp_hyper"),
        ("hyper", "import hypelora_jax.families.encoder"),
        ("interop", "from hypelora_jax.run import lock"),
        ("evaluate", "from hypelora_jax.report import tables"),
        ("run", "from hypelora_jax.train.state import TrainState"),
        ("serve", "def f():\n    from hypelora_jax.commands import serve"),
        ("calibration", "from hypelora_jax.adapters.lora import scale"),
        ("calibration", "from hypelora_jax import trees"),
        ("data", "def f():\n    from hypelora_jax.train import loop"),
        ("adapters", "from hypelora_jax.utilities import x"),
        ("train", "from .state import TrainState"),
        ("train", "from ml_collections import ConfigDict"),
        ("train", "from absl import flags"),
        ("train", "from flax import linen as nn"),
        ("interop", "import torch.nn"),
    ],
)
def test_a_wrong_import_is_found(unit, line):
    assert len(complaints(unit, line)) == 1


def test_a_right_import_is_not_complained_about():
    source = (
        "from absl import logging\nfrom hypelora_jax.config.settings import Settings"
    )
    assert complaints("cli", source) == []
    assert complaints("calibration", source) == []
    assert complaints("families", "from hypelora_jax.families import blocks") == []


def test_importing_the_package_alone_is_light():
    code = (
        "import sys, hypelora_jax; print(sorted({'jax', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stderr


def test_training_imports_late_what_its_first_step_does_not_need():
    """Each of these takes a tenth of a second or more; a run needs them later."""
    code = """
import sys
from hypelora_jax.commands import train
from hypelora_jax.commands.shared import closing, continuation, names, seeds
from hypelora_jax.evaluate import evaluation, summary
from hypelora_jax.train import loop
late = {"scipy.stats", "scipy.optimize", "matplotlib", "orbax", "pyarrow"}
print(sorted(late & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stdout + run.stderr


def test_importing_everything_asks_for_no_device_and_defines_no_flag():
    code = """
import importlib, pkgutil
import hypelora_jax
names = [m.name for m in pkgutil.walk_packages(hypelora_jax.__path__, "hypelora_jax.")]
names += ["hypelora_jax.configs." + m.name for m in pkgutil.iter_modules(
    importlib.import_module("hypelora_jax.configs").__path__)]
for name in names:
    importlib.import_module(name)
from absl import flags
ours = [m for m in flags.FLAGS.flags_by_module_dict() if "hypelora" in m]
assert not ours, ours
import jax
jax.config.update("jax_num_cpu_devices", 3)  # raises once a backend exists
assert jax.device_count("cpu") == 3
print(len(names))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 10
