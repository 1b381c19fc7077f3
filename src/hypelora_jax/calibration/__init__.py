"""Calibration: how far predicted probabilities can be trusted, and how to repair them.

The room sees arrays of logits, probabilities and labels, and nothing else: no run, no
configuration, no model and no sharding may come in.
"""
