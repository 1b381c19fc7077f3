"""The paper's hyper-networks and their training in torch, written from its equations.

It shares no code with ours: transformers' RoBERTa, `nn.TransformerEncoder`, torch's
AdamW. Shapes as in the golden folder: A (N, d, r), B (N, r, d), query slots first.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Embedding of a slot -> B, then A where it is generated."""

    def __init__(self, slots, d, r, *, widths, embedding, generated, a_input=False):
        super().__init__()
        self.shape, self.generated, self.a_input = (d, r), generated, a_input
        self.embedding = nn.Embedding(slots, embedding)
        size = r * d
        sizes = [embedding + size * a_input, *widths, size * (1 + generated)]
        self.depth = len(sizes) - 1
        for i in range(self.depth):
            self.add_module(f"fc{i + 1}", nn.Linear(sizes[i], sizes[i + 1]))

    def forward(self, a):
        d, r = self.shape
        x = self.embedding.weight
        x = torch.cat([x, a.flatten(1)], -1) if self.a_input else x
        for i in range(self.depth):
            x = self.get_submodule(f"fc{i + 1}")(F.gelu(x) if i else x)
        b = x[:, : r * d].reshape(-1, r, d)
        return (x[:, r * d :].reshape(-1, d, r) if self.generated else a), b


class Transformer(nn.Module):
    """One token a slot, or two where A is generated: those of A first."""

    def __init__(
        self, slots, d, r, *, width, heads, depth, embedding, generated, a_input=False
    ):
        super().__init__()
        self.slots, self.shape = slots, (d, r)
        self.generated, self.a_input = generated, a_input
        self.embedding = nn.Embedding(slots * (1 + generated), embedding)
        self.token_proj = nn.Linear(embedding + r * d * a_input, width)
        layer = nn.TransformerEncoderLayer(width, heads, dropout=0.0, batch_first=True)
        self.transformer = nn.TransformerEncoder(
            layer, depth, enable_nested_tensor=False
        )
        self.out_proj = nn.Linear(width, r * d)

    def forward(self, a):
        d, r = self.shape
        x = self.embedding.weight
        x = torch.cat([x, a.flatten(1)], -1) if self.a_input else x
        out = self.out_proj(self.transformer(self.token_proj(x)[None])[0])
        if not self.generated:
            return a, out.reshape(-1, r, d)
        first, second = out[: self.slots], out[self.slots :]
        return first.reshape(-1, d, r), second.reshape(-1, r, d)


@dataclass
class Generated:
    """A hyper-network over some layers; all tensors in slot order."""

    hyper: nn.Module
    a: torch.Tensor
    layers: list[int]
    blend: tuple[str, str]
    start: tuple[torch.Tensor, torch.Tensor]


class Adapted(nn.Module):
    """A classifier whose q and v take factors, generated or static, in float64."""

    def __init__(self, base, scale=1.0, generated=None, static=None):
        super().__init__()
        self.base, self.scale, self.generated = base.double(), scale, generated
        self.hyper = generated.hyper.double() if generated else None
        self.alpha = 0.0
        self.static = {
            k: nn.Parameter(x.double()) for k, x in (static or {}).items()
        }  # by peft's names
        if generated or static:
            for name, module in base.named_modules():
                if name.endswith(("self.query", "self.value")):
                    module.register_forward_hook(self._hook(name))

    def _hook(self, name):
        layer = int(name.split(".")[3])
        if self.generated and layer in self.generated.layers:
            layers = self.generated.layers
            slot = layers.index(layer) + len(layers) * name.endswith("value")
            return lambda _, x, y: y + x[0] @ self.a[slot] @ self.b[slot] * self.scale
        a, b = (self.static[f"{name}.lora_{f}.weight"] for f in "AB")
        return lambda _, x, y: y + x[0] @ a.T @ b.T * self.scale

    def _mixed(self, how, x, start):
        if how == "add":
            return (1 - self.alpha) * x + self.alpha * start.double()
        return x * start.double() if how == "multiply" else x

    def emitted(self):
        return self.hyper(self.generated.a.double())

    def forward(self, batch):
        if self.generated:
            parts = zip(
                self.generated.blend,
                self.emitted(),
                self.generated.start,
                strict=True,
            )
            self.a, self.b = (self._mixed(*part) for part in parts)
        return self.base(**batch).logits


def train(model, batch, labels, named, optimizer, alphas=()):
    """(logits, losses, first gradients, logits in the end) of `named` trained."""
    model.requires_grad_(False)
    for p in named.values():
        p.requires_grad_(True)
    options = {"weight_decay": optimizer["weight_decay"], "eps": optimizer["eps"]}
    adamw = torch.optim.AdamW(named.values(), lr=0.0, **options)
    losses, first, gradients = [], None, None
    for step in range(optimizer["steps"]):
        model.alpha = alphas[step] if alphas else 0.0
        adamw.param_groups[0]["lr"] = _rate(optimizer, step)
        logits = model(batch)
        loss = F.cross_entropy(logits, labels)
        adamw.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            first = logits.detach().numpy()
            gradients = {k: p.grad.numpy().copy() for k, p in named.items()}
        nn.utils.clip_grad_norm_(named.values(), optimizer["clip_global_norm"])
        adamw.step()
    with torch.no_grad():
        return first, losses, gradients, model(batch).numpy()


def _rate(optimizer, step):
    """Linear warm-up from 0, then linear to 0."""
    warmup, steps = optimizer["warmup"], optimizer["steps"]
    if step < warmup:
        return optimizer["lr"] * step / warmup
    return optimizer["lr"] * (steps - step) / (steps - warmup)
