"""Predictions of a finished run: for texts in Python, for streams of rows in files."""
