"""Hugging Face names of the encoders whose layers are called `encoder.layer.N`."""

LAYER = "encoder.layer.{layer}."
MODULES = {
    "q": LAYER + "attention.self.query",
    "k": LAYER + "attention.self.key",
    "v": LAYER + "attention.self.value",
    "o": LAYER + "attention.output.dense",
    "up": LAYER + "intermediate.dense",
    "down": LAYER + "output.dense",
}
NORMS = {
    "embed/norm": "embeddings.LayerNorm",
    "layers/attn_norm": LAYER + "attention.output.LayerNorm",
    "layers/ff_norm": LAYER + "output.LayerNorm",
}
TABLES = {
    "embed/word": "embeddings.word_embeddings",
    "embed/position": "embeddings.position_embeddings",
    "embed/type": "embeddings.token_type_embeddings",
}
