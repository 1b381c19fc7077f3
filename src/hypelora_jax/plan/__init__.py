"""An optional estimate of what a training step costs on hardware that is not here.

It needs no weights, data or downloads, and only `commands` imports this package.
"""
