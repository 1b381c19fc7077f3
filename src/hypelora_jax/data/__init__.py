"""Data: turns files or packages of a source into padded batches of token ids.

Text comes in and numpy arrays go out. This package knows no models, parameters
or devices; what is learned from a batch is defined in `objectives`.
"""
