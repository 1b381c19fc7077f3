"""An optional estimate of what a training step costs on hardware that is not at hand.

Weights, data and downloads may not come in, and only commands imports this room.
"""
