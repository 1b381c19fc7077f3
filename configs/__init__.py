"""Configs: each file has a `get_config(arg)`; `common` has the code they share."""
