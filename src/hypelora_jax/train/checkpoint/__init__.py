"""train/checkpoint."""
