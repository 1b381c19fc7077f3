"""Reports on finished runs: comparisons, tables, diagrams, HTML pages, model cards.

A report reads run folders through `run/` and computes from arrays. It does not train a
model, nor ask one for predictions.
"""
