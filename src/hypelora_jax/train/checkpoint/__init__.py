"""Checkpoints of a run: saved in the background, checked for damage, ranked by score.

Names of their files come from `run/`. Nothing here knows how a step is computed.
"""
