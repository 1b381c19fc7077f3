"""Programs of a run, compiled in a thread before the run needs them.

They are only compiled here. What they compute is decided elsewhere, and a run that
skips this package gives the same numbers.
"""
