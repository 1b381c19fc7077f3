"""Training: a session, its step and loop, the optimizer, and checkpoints.

It ends with the parameters of the chosen checkpoint; what is fitted, judged or shown
after training belongs to `evaluate` and `report`.
"""
