"""Layers that families share: dense, norms, attention, and the encoders' block.

A layer is a function of its inputs, parameters and keys. Names of Hugging Face, and
behaviour of a single family, belong to the families.
"""
