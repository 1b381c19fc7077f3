"""Predictions of a finished run, for texts in Python and for streams of rows in files.

Training, metrics and reports are not used, and nothing here writes to a run folder.
"""
