"""Code that several commands share: flags, names in settings, seeds, the end of a run.

No file here is a command. Code that is useful without a command line belongs in
another package.
"""
