"""An optional estimate of what a training step costs on hardware that is not here.

Weights, data and downloads may not come in, and only `commands` imports this package.
"""
