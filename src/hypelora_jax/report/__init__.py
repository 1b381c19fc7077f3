"""Reports on finished runs: comparisons, tables, diagrams, HTML pages, model cards.

A report reads run folders through `run/` and computes from arrays; nothing here trains
a model or asks one for predictions.
"""
