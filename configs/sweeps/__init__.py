"""Sweeps as data: lists of config overrides."""
