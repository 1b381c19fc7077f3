"""Steps of LoRA on one GPU in bfloat16, against torch with peft: time, memory, MFU.

Each side is a process of its own, so that neither holds memory of the other and torch
may come from another environment (`TORCH_PYTHON`). Both have the same random weights,
and the logits without dropout are compared first. Ours keeps float32 parameters; torch
keeps all of them in bfloat16. The faster of torch's settings counts (sdpa, and sdpa
with torch.compile), for memory the smaller.
"""

import functools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine, processes, timing
from benchmarks.case import Case, Options
from benchmarks.cases import gemm
from benchmarks.cases.step import Shape
from benchmarks.rows import Mismatch, Row, of_counts
from hypelora_jax.interop import base as bases

TORCH = "TORCH_PYTHON"  # a variable: the Python of torch, if it is not this one
# Of logits in bfloat16 after 24 layers; other weights are apart by about 1.
TOLERANCE = 0.1


class Setting(NamedTuple):
    """What both sides compute."""

    shape: Shape
    fused: bool  # no attention dropout, and ours with model.attention=fused
    platform: str = "gpu"
    dtype: str = "bfloat16"
    steps: int = 30
    compiled: bool = True  # whether torch.compile is tried, too

    @property
    def name(self) -> str:
        """The name of its row."""
        return f"device/{self.shape.name}{'_fused' if self.fused else ''}"

    @property
    def model(self) -> dict[str, Any]:
        """Fields of config.model."""
        if not self.fused:
            return {"dtype": self.dtype}
        asked = "fused" if self.platform == "gpu" else "xla"
        return {"dtype": self.dtype, "attention": asked, "attention_dropout": 0.0}


SETTINGS = [
    Setting(Shape(*shape), fused)
    for fused in (False, True)
    for shape in (("random:roberta_base", 32, 128), ("random:roberta_large", 16, 512))
]


def environment(platform: str) -> dict[str, str]:
    """Variables of our process: JAX takes the device, and memory as it needs it."""
    own = "cuda" if platform == "gpu" else platform
    return processes.environment(
        JAX_PLATFORMS=own, XLA_PYTHON_CLIENT_PREALLOCATE="false"
    )


def run(setting: Setting, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run both sides; return what ours and torch's process told."""
    shape, tensors = setting.shape, str(Path(folder) / "tensors.safetensors")
    common = {"steps": setting.steps, "tensors": tensors}

    def told(python: str, program: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        path = Path(folder) / f"{program}.json"
        path.write_text(json.dumps({**spec, **common}))
        module = f"benchmarks.programs.{program}"
        command = [python, "-m", module, str(path)]
        return processes.run(command, environment(setting.platform)).told()

    sizes = {"path": shape.model, "rows": shape.rows, "tokens": shape.tokens}
    own = told(sys.executable, "our_device", {**sizes, "model": setting.model})
    spec = {n: own[n] for n in ("model", "lora", "lr", "weight_decay")}
    spec["device"] = "cuda" if setting.platform == "gpu" else "cpu"
    spec |= {"dtype": setting.dtype, "compiled": setting.compiled}
    python = os.environ.get(TORCH, sys.executable)
    return own, told(python, "torch_device", spec)


def rows(
    setting: Setting, own: Mapping[str, Any], other: Mapping[str, Any]
) -> list[Row]:
    """Rows of what both sides told; the one with the setting's name is the last.

    Raises:
      Mismatch: the logits differ.
    """
    if not other["distance"] <= TOLERANCE:
        raise Mismatch(
            f"{setting.name}: logits differ by {other['distance']:.3g} of the largest"
        )
    shape, config = setting.shape, bases.resolve(setting.shape.model).config
    medians = {n: statistics.median(x) for n, x in other["seconds"].items()}
    fastest = min(medians, key=medians.__getitem__)
    seconds = statistics.median(own["seconds"])
    found: list[Row] = []
    if own["peak_mib"]:
        peaks = other["peak_mib"]
        least = (own["peak_mib"], min(peaks.values()), "MiB")
        name = f"{setting.name}/memory"
        found.append(of_counts(name, "torch+peft", *least, settings=peaks))
    if peak := machine.PEAKS.get(own["kind"]):
        rate = gemm.flops(config, shape.rows, shape.tokens) / seconds
        share = (rate / peak,) * 3
        name = f"{setting.name}/mfu"
        found.append(Row(name, "peak", *share, rate / 1e12, peak / 1e12, "TFLOP/s"))
    notes = {
        "fastest": fastest,
        "seconds": medians,
        "faults": other["faults"],
        "distance_of_logits": other["distance"],
        "seconds_to_compile": own["seconds_to_compile"],
    }
    between = timing.ratio(other["seconds"][fastest], own["seconds"])
    theirs = medians[fastest]
    row = Row(setting.name, "torch+peft", *between, seconds, theirs, "s", notes)
    return [*found, row]


def compared(setting: Setting, options: Options) -> Iterator[Row]:
    """Both sides of a setting.

    Raises:
      UserError: JAX finds no device of the setting's platform.
    """
    del options
    machine.require(setting.platform)
    with tempfile.TemporaryDirectory() as folder:
        yield from rows(setting, *run(setting, folder))


CASES = {
    setting.name: Case(functools.partial(compared, setting), "device")
    for setting in SETTINGS
}
