"""Sharding: the device mesh, the place of every array on it, and several processes.

Here are also options of XLA's compiler, and the memory that a process keeps. This
package knows paths and shapes of parameters, but not what they mean. It does not know
models, data sets or runs.
"""
