"""Data: from the files or packages of a source to padded batches of token ids.

Text comes in and numpy arrays go out; no model, no parameters and no placement on
devices may come in, and what is learned from a batch is for `objectives` to know.
"""
