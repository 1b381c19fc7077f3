"""A LoRA step of torch, transformers and peft on a device, without JAX.

    python -m benchmarks.programs.torch_device SPEC.json

The spec is JSON: `model` (fields of config.json), `lora` (fields of LoraConfig), `lr`,
`weight_decay`, `steps`, `dtype`, `device` (cuda or cpu) and `tensors`, a file of
`our_device`. All weights have the dtype, those that train, too. The step runs with
sdpa, and then, if `compiled`, with each layer compiled by torch.compile. The last line
is JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file

Spec = dict[str, Any]
WARM = 3  # steps before the clock is read
COMPILED = "sdpa, torch.compile"


def adapted(spec: Spec, given: dict[str, torch.Tensor]) -> Any:
    """The model of peft that trains, with our weights, on its device."""
    config = transformers.AutoConfig.for_model(**spec["model"])
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_config(config, attn_implementation="sdpa")
    model.load_state_dict(_part(given, "base."), strict=False)
    own = peft.get_peft_model(
        model, peft.LoraConfig(**spec["lora"]), autocast_adapter_dtype=False
    )
    peft.set_peft_model_state_dict(own, _part(given, "lora."))
    return own.to(spec["device"], getattr(torch, spec["dtype"]))


def _part(given: dict[str, torch.Tensor], begin: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(begin): x for n, x in given.items() if n.startswith(begin)}


def distance(model: Any, batch: dict[str, Any], ours: torch.Tensor) -> float:
    """Largest difference of logits without dropout, as a share of the largest one."""
    model.eval()
    with torch.inference_mode():
        found = model(**batch).logits.float().cpu()
    return float((found - ours).abs().max() / ours.abs().max())


def step(spec: Spec, model: Any, batch: dict[str, Any]) -> Callable[[], float]:
    """One training step: zero_grad, forward, backward, and the optimizer's step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    tx = torch.optim.AdamW(
        trained, lr=spec["lr"], weight_decay=spec["weight_decay"], fused=True
    )
    model.train()

    def run() -> float:
        tx.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        tx.step()
        return loss.item()  # waits for the device

    return run


def timed(run: Callable[[], float], steps: int) -> list[float]:
    """Seconds of each step after some that are not counted."""
    for _ in range(WARM):
        run()
    out = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        out.append(time.perf_counter() - start)
    return out


def peak_mib(spec: Spec) -> float:
    """Most memory that tensors had since the last reset; 0 on CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if _cuda(spec) else 0.0


def _cuda(spec: Spec) -> bool:
    return spec["device"] == "cuda"


def measured(spec: Spec) -> dict[str, Any]:
    """Do the steps in both settings, and return what was measured."""
    given = load_file(spec["tensors"])
    ours, inputs = given["logits"].float(), _part(given, "batch.")
    model = adapted(spec, given)
    batch = {n: x.to(spec["device"]) for n, x in inputs.items()}
    off = distance(model, batch, ours)
    run = step(spec, model, batch)
    seconds, peaks, faults = {}, {}, {}
    for name in ("sdpa", COMPILED)[: 1 + spec["compiled"]]:
        if _cuda(spec):
            torch.cuda.reset_peak_memory_stats()
        if name == COMPILED:
            (layers,) = (
                m for n, m in model.named_modules() if n.endswith("encoder.layer")
            )
            for layer in layers:
                layer.compile(dynamic=False)
        try:
            seconds[name] = timed(run, spec["steps"])
            peaks[name] = peak_mib(spec)
        except Exception as e:  # whatever torch's compiler raises
            if name != COMPILED:
                raise
            faults[name] = f"{type(e).__name__}: {e}".splitlines()[0]
    return {"seconds": seconds, "peak_mib": peaks, "faults": faults, "distance": off}


def main(path: str) -> None:
    """Measure as the spec says, and print it."""
    with open(path) as file:
        print(json.dumps(measured(json.load(file))))


if __name__ == "__main__":
    main(sys.argv[1])
