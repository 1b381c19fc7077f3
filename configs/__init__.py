"""Configs: one `get_config(arg)` a file; `common` holds what they share."""
