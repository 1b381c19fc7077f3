"""A golden folder of other sizes than the one in the tree, computed by published.py."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from oracle.published import MLP, Adapted, Generated, Transformer, train
from transformers import RobertaConfig, RobertaForSequenceClassification

GOLDEN = Path(__file__).parents[1] / "golden"
WIDTH, RANK, LAYERS, CLASSES, ROWS, TOKENS = 40, 3, 4, 5, 7, 17
HIDDEN, EMBEDDING = [20, 28, 24], 9  # of the MLP
TRUNK = {"width": 24, "heads": 3, "depth": 3, "embedding": 7}
SOME, ALL = [1, 3], list(range(LAYERS))
STEPS, WARMUP, SCALE = 10, 3, 2
PEFT = "lora/base_model.model."
CONFIG = RobertaConfig(
    vocab_size=123,
    hidden_size=WIDTH,
    num_attention_heads=5,
    num_hidden_layers=LAYERS,
    intermediate_size=72,
    max_position_embeddings=30,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    num_labels=CLASSES,
)
# kind, A, all widths, A as input
HYPERNETS = [
    ("mlp", "fixed", True, False),
    ("mlp", "fixed", False, True),
    ("mlp", "generated", False, False),
    ("transformer", "fixed", True, True),
    ("transformer", "generated", True, False),
]
# kind, A, layers, blending of A and of B, alpha at the start
MODELS = [
    ("mlp", "fixed", ALL, ("replace", "replace"), 1.0),
    ("mlp", "generated", SOME, ("multiply", "add"), 0.9),
    ("transformer", "fixed", SOME, ("add", "add"), 0.8),
    ("transformer", "generated", ALL, ("add", "add"), 0.5),
]
METHODS = ("lora", "full")


def make(folder: Path) -> None:
    torch.manual_seed(11)
    base = _base()
    base.save_pretrained(folder / "base")
    shutil.copy(GOLDEN / "metrics.npz", folder)
    inputs, labels = _batch(folder, base)
    index = {
        "hidden": WIDTH,
        "heads": CONFIG.num_attention_heads,
        "layers": LAYERS,
        "rank": RANK,
        "num_labels": CLASSES,
        "vocab": CONFIG.vocab_size,
        "encoder": {"file": "encoder.npz", "dtype": "float32"},
        "hypernets": {
            f"hypernet_{i}": _hypernet(folder / f"hypernet_{i}.npz", *case)
            for i, case in enumerate(HYPERNETS)
        },
        "models": [
            _model(folder / f"model_{i}.npz", base, inputs, labels, *case)
            for i, case in enumerate(MODELS)
        ],
        "baselines": [
            _baseline(folder / f"baseline_{m}.npz", base, inputs, labels, m)
            for m in METHODS
        ],
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1))


def _base():
    base = RobertaForSequenceClassification(CONFIG).eval()
    with torch.no_grad():  # biases and norms away from 0 and 1, so that each is seen
        for p in base.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return base


def _copy(base):
    copy = RobertaForSequenceClassification(CONFIG).eval()
    copy.load_state_dict(base.state_dict())
    return copy


def _batch(folder, base):
    chance = np.random.default_rng(0)
    ids = chance.integers(3, CONFIG.vocab_size, (ROWS, TOKENS))
    mask = np.arange(TOKENS) < chance.integers(4, TOKENS + 1, (ROWS, 1))
    ids = np.where(mask, ids, CONFIG.pad_token_id)
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask) + 0}
    labels = torch.tensor(chance.integers(0, CLASSES, ROWS))
    with torch.no_grad():
        out = base(**inputs, output_hidden_states=True)
    hidden = {f"hidden_{i}": x.numpy() for i, x in enumerate(out.hidden_states)}
    arrays = {k: x.numpy() for k, x in inputs.items()}
    arrays |= {"labels": labels.numpy(), "logits": out.logits.numpy()}
    np.savez(folder / "encoder.npz", **arrays, **hidden)
    return inputs, labels


def _a(slots):
    """Kaiming over the last axis, as the reference draws it."""
    return torch.empty(slots, WIDTH, RANK).uniform_(-1, 1) / math.sqrt(RANK)


def _hyper(kind, a, slots, large=True, a_input=False):
    common = {"generated": a == "generated", "a_input": a_input}
    if kind == "transformer":
        return Transformer(slots, WIDTH, RANK, **TRUNK, **common)
    widths = HIDDEN if large else HIDDEN[:1]
    return MLP(slots, WIDTH, RANK, widths=widths, embedding=EMBEDDING, **common)


def _hypernet(file, kind, a, large, a_input):
    """One hyper-network alone: its state and what it emits."""
    slots = 2 * LAYERS
    hyper, given = _hyper(kind, a, slots, large, a_input), _a(slots)
    with torch.no_grad():
        emitted_a, emitted_b = hyper(given)
    _save(file, {"A": emitted_a, "B": emitted_b}, w=hyper.state_dict())
    info = {"kind": kind, "A": a, "embedding_input_only": not a_input, "lora_r": RANK}
    if kind == "transformer":
        return info | _trunk() | {"num_layers": TRUNK["depth"]}
    return info | {"large": large, "hidden_dim": HIDDEN, "embedding_dim": EMBEDDING}


def _trunk():
    return {
        "hidden_dim": TRUNK["width"],
        "nhead": TRUNK["heads"],
        "embedding_dim": TRUNK["embedding"],
    }


def _model(file, base, inputs, labels, kind, a, layers, blend, alpha):
    """A whole model and its training."""
    slots = 2 * len(layers)
    # the folder holds these in module order: layer by layer, query before value
    initial = 0.3 * _a(slots), torch.zeros(slots, RANK, WIDTH)
    slot = np.arange(slots) // 2 + len(layers) * (np.arange(slots) % 2)
    start = tuple(x[np.argsort(slot)] for x in initial)
    hyper = _hyper(kind, a, slots)
    state = {k: x.clone() for k, x in hyper.state_dict().items()}
    static = _static([layer for layer in ALL if layer not in layers])
    generated = Generated(hyper, _a(slots), layers, blend, start)
    model = Adapted(_copy(base), SCALE, generated, static)
    with torch.no_grad():
        emitted_a, emitted_b = model.emitted()
    alphas = [alpha - alpha / STEPS * s for s in range(STEPS)] if "add" in blend else []
    optimizer = _optimizer(1e-4 if kind == "transformer" else 1e-3)
    arrays, gradients = _trained(
        model, inputs, labels, _named(model), optimizer, alphas
    )
    arrays |= {"A": emitted_a, "B": emitted_b, "dyn_layer_id": slot, "alphas": alphas}
    arrays |= {"initial_A": initial[0], "initial_B": initial[1]}
    arrays |= {PEFT + k: x for k, x in static.items()}
    head = base.classifier.state_dict()
    _save(file, arrays, hyper=state, classifier=head, grad=gradients)
    return _model_info(kind, a, layers, blend, alpha) | {
        "file": file.name,
        "optimizer": optimizer,
    }


def _named(model):
    """What trains, by the folder's names."""
    named = {f"hyper/{k}": p for k, p in model.hyper.named_parameters()}
    head = model.base.classifier.named_parameters()
    named |= {f"classifier/{k}": p for k, p in head}
    return named | {PEFT + k: p for k, p in model.static.items()}


def _trained(model, inputs, labels, named, optimizer, alphas=()):
    logits, losses, gradients, end = train(
        model, inputs, labels, named, optimizer, alphas
    )
    return {"logits": logits, "losses": losses, "end_logits": end}, gradients


def _model_info(kind, a, layers, blend, alpha):
    info = {
        "hypernet": kind,
        "A": a,
        "noise_A": blend[0],
        "noise_B": blend[1],
        "noise_alpha": alpha,
        "lora_r": RANK,
        "lora_alpha": SCALE * RANK,
        "hypernet_layers": layers,
    }
    if kind == "transformer":
        return info | _trunk() | {"hyper_layers": TRUNK["depth"]}
    return info | {"hidden_dim": HIDDEN, "embedding_dim": EMBEDDING}


def _baseline(file, base, inputs, labels, method):
    """LoRA on every layer, or full fine-tuning."""
    static = _static(ALL) if method == "lora" else None
    model = Adapted(_copy(base), SCALE, static=static)
    named = dict(model.base.named_parameters())
    if method == "lora":
        head = {k: p for k, p in named.items() if k.startswith("classifier.")}
        named = model.static | head
    start = {k: p.detach().float() for k, p in named.items()}
    optimizer = _optimizer(1e-3)
    arrays, _ = _trained(model, inputs, labels, named, optimizer)
    _save(file, arrays, start=start)
    info = {"file": file.name, "method": method, "optimizer": optimizer}
    if method == "lora":
        targets = ["query", "value"]
        info |= {"lora_r": RANK, "lora_alpha": SCALE * RANK, "targets": targets}
    return info


def _static(layers):
    """LoRA factors of q and v of these layers, by peft's names; B is not zero."""
    shapes = {"A": (RANK, WIDTH), "B": (WIDTH, RANK)}
    return {
        f"roberta.encoder.layer.{layer}.attention.self.{m}.lora_{f}.weight": 0.1
        * torch.randn(shape)
        for layer in layers
        for m in ("query", "value")
        for f, shape in shapes.items()
    }


def _optimizer(lr):
    return {
        "name": "adamw",
        "lr": lr,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip_global_norm": 1.0,
        "steps": STEPS,
        "warmup": WARMUP,
        "schedule": f"linear, warmup {WARMUP} of {STEPS} steps, to 0",
    }


def _save(file, arrays, **trees):
    """Arrays, and those of each tree as tree/name."""
    flat = {f"{t}/{k}": x for t, tree in trees.items() for k, x in tree.items()}
    np.savez(file, **{k: np.asarray(x) for k, x in (arrays | flat).items()})
