"""Sharding: the device mesh, where every array lives on it, and several processes.

The room knows paths of parameters and shapes, not what they mean: no model, data set or
run may come in.
"""
