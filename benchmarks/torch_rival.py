"""The rival: the same model and the same step in torch, transformers and peft."""

import json
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import processes, torch_fields
from benchmarks.machine import cores
from benchmarks.ours import CLASSES, Ours, batch_of, mesh, start
from benchmarks.rows import Mismatch
from hypelora_jax.errors import UserError
from hypelora_jax.families.sizes import EncoderConfig
from hypelora_jax.interop import huggingface, tensors
from hypelora_jax.keys import named_keys
from hypelora_jax.sharding.mesh import put_batch
from hypelora_jax.train.step import gradients
from hypelora_jax.types import Params

ATTENTION = ("eager", "sdpa")
LIMIT = 120  # seconds for a step that compiles
# Largest difference of a gradient, as a share of the largest gradient of its tensor.
TOLERANCE = 2e-3


def torch() -> Any:
    """Import torch, with as many threads as JAX has.

    Raises:
      UserError: it is not installed.
    """
    try:
        import torch as found
    except ImportError:
        raise UserError(
            "torch is not installed; expected the extra bench. Run `make bench`, or "
            "leave out with --only the rows that compare with it"
        ) from None
    found.set_num_threads(cores())
    # peft asks transformers for a name that is deprecated, and warns of a base model
    # without a path
    warnings.filterwarnings("ignore", module="peft|transformers")
    return found


def bare(config: EncoderConfig, params: Params, attention: str) -> Any:
    """A model of transformers with our backbone and head."""
    th = torch()
    import transformers

    fields = tensors.make_config(config, outputs=CLASSES)
    made = transformers.AutoConfig.for_model(**fields)
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_config(made, attn_implementation=attention)
    ours = huggingface.to_hf(config, params)
    given = {name: th.from_numpy(np.array(x)) for name, x in ours.items()}
    missing, unexpected = model.load_state_dict(given, strict=False)
    if unexpected or [name for name in missing if "position_ids" not in name]:
        raise Mismatch(f"transformers' model lacks {missing} and refuses {unexpected}")
    return model


def adapted(ours: Ours, attention: str) -> Any:
    """A model of peft with our backbone, head and factors, ready to train."""
    th = torch()
    import peft as their_peft

    model = bare(ours.config, ours.params, attention)
    own = their_peft.get_peft_model(
        model, their_peft.LoraConfig(**torch_fields.lora(ours))
    )
    given, _ = torch_fields.named(ours, ours.params["lora"], ours.params["head"])
    named = {name: th.from_numpy(np.array(x)) for name, x in given.items()}
    their_peft.set_peft_model_state_dict(own, named)
    return own


def inputs(config: EncoderConfig, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The arguments of transformers' forward for one of our batches."""
    th = torch()
    named = torch_fields.inputs(config, batch)
    return {name: th.from_numpy(x) for name, x in named.items()}


def optimizer(ours: Ours, model: Any) -> Any:
    """AdamW, fused, with the numbers of ours."""
    own = ours.settings.optim
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch().optim.AdamW(
        trained,
        lr=own.lr,
        betas=(own.b1, own.b2),
        eps=own.eps,
        weight_decay=own.weight_decay,
        fused=True,
    )


def step(
    ours: Ours, model: Any, rows: int, tokens: int, dropout: bool
) -> Callable[[], float]:
    """One training step: zero_grad, forward, backward, and the optimizer's step."""
    batch = inputs(ours.config, batch_of(ours.config, rows, tokens))
    tx = optimizer(ours, model)
    model.train(dropout)

    def run() -> float:
        tx.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        tx.step()
        return loss.item()

    return run


def compile_layers(model: Any) -> None:
    """Compile each layer of a model, anew for each shape, when it is first called.

    All layers share one program, so this takes a fraction of the time of compiling the
    whole model.
    """
    torch()._dynamo.config.recompile_limit = 64  # shapes, each with dropout and without
    (layers,) = (m for n, m in model.named_modules() if n.endswith("encoder.layer"))
    for layer in layers:
        layer.compile(dynamic=False)


def tried(way: Callable[[], object], seconds: int = LIMIT) -> tuple[str, float]:
    """Run a way once; return (why it does not work, or "", and how long it took).

    Compilation needs a C++ compiler, and may take longer than `seconds`.
    """
    start = time.perf_counter()

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        way()
    except Exception as e:  # whatever the compiler raises
        fault = f"{type(e).__name__}: {e}".splitlines()[0]
        return fault, time.perf_counter() - start
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "", time.perf_counter() - start


def check_same(ours: Ours, model: Any, rows: int = 4, tokens: int = 16) -> None:
    """Check that both sides have the same loss and gradients, without dropout.

    Raises:
      Mismatch: they do not.
    """
    batch = batch_of(ours.config, rows, tokens)
    loss, gradient = _ours(ours, batch)
    model.train(False)
    model.zero_grad()
    found = model(**inputs(ours.config, batch)).loss
    found.backward()
    theirs = {
        name.replace(".default", "").replace(".modules_to_save", ""): p.grad.numpy()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    model.zero_grad()
    check_close(loss, found.item(), gradient, theirs)


def _ours(ours: Ours, batch: Mapping[str, np.ndarray]) -> tuple[float, dict]:
    """Return (loss, gradients by peft's names)."""
    state, frozen, _ = start(ours)
    keys = named_keys(state.key, 0, "adapt", "rows")
    grads = jax.jit(gradients(ours.model, 1, True))
    loss, _, found = grads(state.params, frozen, put_batch(batch, mesh()), 0.0, keys)
    return float(loss), torch_fields.named(ours, found["lora"], found["head"])[0]


def check_close(
    loss: float,
    other: float,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    tolerance: float = TOLERANCE,
) -> None:
    """Check losses and gradients, which are compared by name.

    Raises:
      Mismatch: one differs, or one side trains what the other does not.
    """
    if not abs(loss - other) <= tolerance * max(abs(other), 1e-3):
        raise Mismatch(f"the loss is {loss:.6g} here and {other:.6g} there")
    if only := sorted(set(ours) ^ set(theirs)):
        raise Mismatch(f"only one side trains {', '.join(only[:3])}")
    for name, x in ours.items():
        largest = float(np.abs(theirs[name]).max())
        apart = float(np.abs(x - theirs[name]).max())
        if not apart <= tolerance * max(largest, 1e-7):
            raise Mismatch(
                f"gradients of {name} differ by {apart:.3g}, of {largest:.3g}"
            )


def trained(ours: Ours, attention: str, **more: Any) -> processes.Done:
    """Train in a process of its own; see `benchmarks.programs.torch_training`."""
    spec = {
        "model": torch_fields.model(ours),
        "weights": "",
        "lora": torch_fields.lora(ours),
        "attention": attention,
        "threads": cores(),
        "lr": ours.settings.optim.lr,
        **more,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec))
        return processes.python("-m", "benchmarks.programs.torch_training", str(path))
