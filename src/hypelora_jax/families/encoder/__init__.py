"""What encoders have in common: the stack of layers, config.json, names, shardings.

A family gives the parts in which it differs; nothing here asks which family it is.
"""
