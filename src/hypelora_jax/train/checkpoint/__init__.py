"""Checkpoints of a run: saved in the background, checked for damage, ranked by score.

Names of their files come from `run/`. How a step is computed may not come in.
"""
