"""Reports on finished runs: comparisons, tables, diagrams, HTML pages, model cards.

A report reads run folders through `run/` and computes from arrays. Training a model and
asking it for predictions may not come in.
"""
