"""Sharding: the device mesh, the place of every array on it, and several processes.

This package knows paths and shapes of parameters, but not what they mean. Models, data
sets and runs may not come in.
"""
