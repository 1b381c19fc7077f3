"""Hugging Face names of our parameters: one table a family."""

from typing import NamedTuple

from hypelora_jax.families.sizes import EncoderConfig

# canonical module -> Hugging Face name of the projection, without the family's prefix
_LAYER = "encoder.layer.{layer}."
_MODULES = {
    "q": _LAYER + "attention.self.query",
    "k": _LAYER + "attention.self.key",
    "v": _LAYER + "attention.self.value",
    "o": _LAYER + "attention.output.dense",
    "up": _LAYER + "intermediate.dense",
    "down": _LAYER + "output.dense",
}
HF_MODULES = {"roberta": _MODULES, "bert": _MODULES}
PREFIX = {"roberta": "roberta.", "bert": "bert."}

_NORMS = {
    "embed/norm": "embeddings.LayerNorm",
    "layers/attn_norm": _LAYER + "attention.output.LayerNorm",
    "layers/ff_norm": _LAYER + "output.LayerNorm",
}
_TABLES = {
    "embed/word": "embeddings.word_embeddings",
    "embed/position": "embeddings.position_embeddings",
    "embed/type": "embeddings.token_type_embeddings",
}
# names of the head as they stand in a file: the pooler is under the prefix
HF_HEAD = {
    "roberta": {"dense": "classifier.dense", "out": "classifier.out_proj"},
    "bert": {"dense": "bert.pooler.dense", "out": "classifier"},
}
# tensors that are no part of our tree; names without the prefix
EXTRA = {
    "roberta": r"lm_head\..*|.*\bposition_ids|pooler\.dense\.(weight|bias)",
    "bert": r"cls\..*|.*\bposition_ids",
}


class Entry(NamedTuple):
    """Where a tensor goes: a path of the tree, a row of a stack, turned or not."""

    path: str
    layer: int | None
    turned: bool  # torch keeps kernels as (O, I)


def names(config: EncoderConfig) -> dict[str, Entry]:
    """Entry of each tensor, by its full name in a file with prefixes, in file order."""
    prefix, found = PREFIX[config.family], {}

    def add(pattern: str, path: str, turned: bool = False) -> None:
        stacked = "{layer}" in pattern
        for layer in range(config.layers) if stacked else (None,):
            found[pattern.format(layer=layer)] = Entry(path, layer, turned)

    for path, name in _TABLES.items():
        add(f"{prefix}{name}.weight", f"backbone/{path}/embedding")
    for path, name in _NORMS.items():
        add(f"{prefix}{name}.weight", f"backbone/{path}/scale")
        add(f"{prefix}{name}.bias", f"backbone/{path}/bias")
    for module, name in HF_MODULES[config.family].items():
        add(f"{prefix}{name}.weight", f"backbone/layers/{module}/kernel", turned=True)
        add(f"{prefix}{name}.bias", f"backbone/layers/{module}/bias")
    for part, name in HF_HEAD[config.family].items():
        add(f"{name}.weight", f"head/{part}/kernel", turned=True)
        add(f"{name}.bias", f"head/{part}/bias")
    return found


def shapes(config: EncoderConfig, num_outputs: int) -> dict[str, tuple[int, ...]]:
    """Shape of each path, one layer's for stacks, in our orientation."""
    d, f, backbone = config.width, config.ff, {}
    rows = {"word": config.vocab, "position": config.max_positions}
    for name, count in (rows | {"type": config.type_vocab}).items():
        backbone[f"embed/{name}/embedding"] = (count, d)
    for norm in _NORMS:
        backbone |= {f"{norm}/scale": (d,), f"{norm}/bias": (d,)}
    wide = {"up": (d, f), "down": (f, d)}
    for module in _MODULES:
        kernel = wide.get(module, (d, d))
        backbone |= {
            f"layers/{module}/kernel": kernel,
            f"layers/{module}/bias": kernel[1:],
        }
    head = {
        "head/dense/kernel": (d, d),
        "head/dense/bias": (d,),
        "head/out/kernel": (d, num_outputs),
        "head/out/bias": (num_outputs,),
    }
    return {f"backbone/{path}": shape for path, shape in backbone.items()} | head
