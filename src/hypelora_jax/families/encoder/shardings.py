"""Sharding rules of an encoder's leaves; see `sharding.rules` for their meaning."""

from jax.sharding import PartitionSpec as P

from hypelora_jax.sharding.rules import IN, OUT, Table

SHARDINGS: Table = (
    # cut by width, since no released vocabulary is a multiple of a large power of two
    ("backbone/embed/(word|position|type)/embedding", P(("fsdp", "model"))),
    ("backbone/embed/norm/(scale|bias)", P()),
    (f"backbone/layers/{IN}/kernel", P("fsdp", "model")),
    (f"backbone/layers/{IN}/bias", P("model")),
    (f"backbone/layers/{OUT}/kernel", P("model", "fsdp")),
    (f"backbone/layers/{OUT}/bias", P()),
    ("backbone/layers/(attn|ff)_norm/(scale|bias)", P()),
)
