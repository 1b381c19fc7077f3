"""Estimate of one step on a slice: memory, bytes moved, and minimum time."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
from absl import logging

from hypelora_jax import trees
from hypelora_jax.config.sections import Remat
from hypelora_jax.config.settings import MeshConfig, Settings
from hypelora_jax.plan import cost, program, traffic
from hypelora_jax.plan.topology import GIB, Topology

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


class Estimate(NamedTuple):
    """Estimate of one step on one slice; bytes, FLOPs and seconds are per chip.

    Figures that need a finished compilation are None if the compiler refused the step.
    """

    fits: bool
    bytes_per_device: dict[str, int | None]  # arguments outputs temporaries peak
    flops: int  # of matrix products, including recomputed ones
    global_batch: int
    rows_per_chip: int
    chips: int
    conditions: int = 1  # U, the distinct conditions of a batch
    trained: dict[str, int] | None = None  # parameters by part: cond head hyper ...
    collective_bytes: dict[str, int] | None = None
    hbm_traffic: int | None = None
    roofline: cost.Roofline | None = None
    mfu: float | None = None  # at the roofline, so an upper bound
    compiler: str = ""  # error message of the compiler


def estimate(settings: Settings, topology: Topology) -> Estimate:
    """Compile the step of a run for a slice and estimate what it needs.

    Raises:
      UserError: sizes do not divide, max_length is too long, or the model is unknown.
    """
    step = program.build(settings, topology)
    logging.info(
        "compiling for %s: %d x %d sequences of %d tokens, remat %s, accumulate %d",
        topology.name,
        step.mesh.size,
        step.rows_per_chip * settings.optim.accumulate,
        settings.data.max_length,
        settings.model.remat,
        settings.optim.accumulate,
    )
    lowered = step.function.lower(*step.arguments)
    flops, useful = executed(settings, topology, step)
    common = {
        "flops": flops,
        "global_batch": settings.optim.batch_size,
        "rows_per_chip": step.rows_per_chip * settings.optim.accumulate,
        "chips": step.mesh.size,
        "conditions": step.conditions,
        "trained": {n: trees.count(x) for n, x in step.arguments[0].params.items()},
    }
    try:
        compiled = lowered.compile(compiler_options=dict(topology.chip.options))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = _too_large(step, str(error), common)
    else:
        found = _measured(step, topology, compiled, useful, common)
    peak = found.bytes_per_device["peak"]
    if topology.chip.hbm_bytes and peak:
        logging.info(
            "needs %.2f GiB of %.2f", peak / GIB, topology.chip.hbm_bytes / GIB
        )
    return found


def executed(
    settings: Settings, topology: Topology, step: program.Step
) -> tuple[int, int]:
    """Return the FLOPs of a chip in a step, with and without recomputation.

    They are counted on one chip's rows, so work that every chip repeats counts in full.
    The mesh axis `model` is assumed to divide all work evenly.
    """
    model = step.mesh.shape["model"]

    def of(remat: Remat) -> int:
        alone = dataclasses.replace(
            settings,
            mesh=MeshConfig(1, 1, 1),
            model=dataclasses.replace(settings.model, remat=remat),
            optim=dataclasses.replace(
                settings.optim,
                batch_size=step.rows_per_chip * settings.optim.accumulate,
            ),
        )
        one = program.build(alone, topology._replace(devices=topology.devices[:1]))
        return cost.matmul_flops(one.function.trace(*one.arguments).jaxpr) // model

    remat = settings.model.remat
    flops = of(remat)
    return flops, flops if remat == "none" else of("none")


def _too_large(step: program.Step, message: str, common: dict) -> Estimate:
    """Make the estimate of a step that the compiler refuses, from its message."""
    message = " ".join(message.split())
    found = re.findall(r"([\d.]+)([KMGT])\b", message)
    needed = [round(float(number) * UNITS[unit]) for number, unit in found]
    arguments = program.bytes_on_one(step.arguments)
    state = program.bytes_on_one(step.arguments[0])
    only_temporaries = "temporaries" in message
    temporaries = needed[0] if needed and only_temporaries else None
    peak = (
        (arguments + needed[0] if only_temporaries else needed[0]) if needed else None
    )
    sizes = {
        "arguments": arguments,
        "outputs": state,
        "temporaries": temporaries,
        "peak": peak,
    }
    return Estimate(False, sizes, compiler=message, **common)


def _measured(
    step: program.Step, topology: Topology, compiled: Any, useful: int, common: dict
) -> Estimate:
    """Make the estimate of a compiled step."""
    memory, chip = compiled.memory_analysis(), topology.chip
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    # The state is donated, so its new value shares the memory of the old one.
    sizes["peak"] = (
        sum(sizes.values())
        - memory.alias_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    text = compiled.as_text()
    moved, hbm_bytes = traffic.collective_bytes(text), traffic.memory_bytes(text)
    line = cost.roofline(chip, common["flops"], hbm_bytes, moved, step.mesh.size)
    mfu = None
    if line is not None and chip.rates is not None:
        mfu = useful / (line.seconds * chip.rates.flops)
    return Estimate(
        fits=chip.hbm_bytes is None or sizes["peak"] <= chip.hbm_bytes,
        bytes_per_device=sizes,
        collective_bytes=moved,
        hbm_traffic=hbm_bytes,
        roofline=line,
        mfu=mfu,
        **common,
    )
