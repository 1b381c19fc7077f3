"""The run folder: its paths, record, predictions, calibrator, metric log and lock.

This is the only package that spells the file names of a run, and it reads and writes
these files. It does not know how a model is trained, evaluated or reported.
"""
