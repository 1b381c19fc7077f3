"""Calibration measures how far predicted probabilities can be trusted and repairs them.

This package sees only arrays of logits, probabilities and labels. Runs, configurations,
models and sharding may not come in.
"""
