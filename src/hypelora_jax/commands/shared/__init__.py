"""What several commands share: flags, names of settings, seeds, how a run ends.

A file here is no command; what could be done without a command line belongs to a room
below.
"""
