"""Parts that encoders share: the stack of layers, config.json, names and shardings.

A family passes in the parts in which it differs. No code here
asks which family it is.
"""
