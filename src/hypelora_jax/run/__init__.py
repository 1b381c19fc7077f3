"""The run folder: its paths, record, predictions, calibrator, metric log and lock.

This is the only package that spells a file name of a run. It reads and writes files and
knows nothing of how a model is trained, evaluated or reported.
"""
