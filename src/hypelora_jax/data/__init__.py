"""Data: turns files or packages of a source into padded batches of token ids.

Text comes in and numpy arrays go out. Models, parameters and placement on devices may
not come in, nor what is learned from a batch, which `objectives` defines.
"""
