"""Exports runs as Hugging Face files, and imports such files as runs.

What belongs to a run (its calibrator, its card, its record) is handled here; the
formats of the files themselves belong to `interop`.
"""
