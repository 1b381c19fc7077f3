"""Sharding: the device mesh, the place of every array on it, and several processes.

This package knows paths and shapes of parameters, but not what they mean. It does not
know models, data sets or runs.
"""
