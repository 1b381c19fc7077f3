"""Whether the condition of a run matters: controls, intervals and a verdict.

Only conditions are exchanged, for a model that is trained. Nothing is fitted to a text.
"""
