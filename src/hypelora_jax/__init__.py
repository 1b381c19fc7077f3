"""HypeLoRA in JAX: hyper-network-generated LoRA with calibrated confidence."""

__version__ = "0.1.0"
