"""Programs of a run, compiled in the background before the run needs them."""
