"""Our LoRA step on a device: seconds, peak memory and logits, without torch.

    python -m benchmarks.programs.our_device SPEC.json

The spec is JSON: `path` (of the base model), `rows`, `tokens`, `steps`, `model` (fields
of config.model) and `tensors`, a file that gets weights, factors and batch by the names
of transformers and peft, and our logits without dropout. The last line is JSON.
"""

import json
import sys
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from benchmarks import ours, timing, torch_fields
from hypelora_jax.interop import huggingface
from hypelora_jax.sharding.mesh import put_batch

WARM = 3  # steps before the clock is read


def measured(spec: dict[str, Any]) -> dict[str, Any]:
    """Write the tensors, do the steps, and return what was measured."""
    own = ours.ours(spec["path"], model=tuple(spec["model"].items()))
    rows, tokens = spec["rows"], spec["tokens"]
    _write(own, ours.batch_of(own.config, rows, tokens), spec["tensors"])
    step = ours.step(own, rows, tokens, dropout=True)
    for _ in range(WARM):
        step.run()
    seconds = [timing.once(step.run)[0] for _ in range(spec["steps"])]
    device = jax.devices()[0]
    return {
        "seconds": seconds,
        "seconds_to_compile": step.seconds_to_compile,
        "loss": float(step.run()["loss"]),
        "peak_mib": (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**20,
        "kind": device.device_kind,
        "model": torch_fields.model(own, spec["model"].get("attention_dropout")),
        "lora": torch_fields.lora(own),
        "lr": own.settings.optim.lr,
        "weight_decay": own.settings.optim.weight_decay,
    }


def _write(own: ours.Ours, batch: dict[str, np.ndarray], path: str) -> None:
    """Write weights, factors, batch, and the logits of a forward pass."""
    placed = put_batch(batch, ours.mesh())

    def logits(params: Any, batch: Any) -> jax.Array:
        return own.model.classify(params, own.model.adapt(params, batch, 0.0), batch)

    factors, _ = torch_fields.named(own, own.params["lora"], own.params["head"])
    given = {
        **{
            f"base.{n}": x for n, x in huggingface.to_hf(own.config, own.params).items()
        },
        **{f"lora.{n}": x for n, x in factors.items()},
        **{f"batch.{n}": x for n, x in torch_fields.inputs(own.config, batch).items()},
        "logits": jax.jit(logits)(own.params, placed),
    }
    save_file({n: np.ascontiguousarray(x) for n, x in given.items()}, path)


def main(path: str) -> None:
    """Measure as the spec says, and print it."""
    with open(path) as file:
        print(json.dumps(measured(json.load(file))))


if __name__ == "__main__":
    main(sys.argv[1])
