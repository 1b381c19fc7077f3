"""How the examples of a step share its rows: packed, or in groups of tasks.

These modules decide which examples go where. They read no files and know no model.
"""
