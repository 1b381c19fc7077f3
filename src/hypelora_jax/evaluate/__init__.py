"""Evaluates a fitted model: its calibrator, its metrics and averages over members.

It returns numbers and writes them through `run`; tables, diagrams and the command line
belong to other packages.
"""
