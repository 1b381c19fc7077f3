"""A small HTTP service: finished runs behind one backbone, asked in batches."""
