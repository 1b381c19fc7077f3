"""Calibration measures how far predicted probabilities can be trusted and repairs them.

This package sees only arrays of logits, probabilities and labels. It does not
know runs, configurations, models or sharding.
"""
