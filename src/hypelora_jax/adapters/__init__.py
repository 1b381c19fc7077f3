"""LoRA adapters as plain data: which projections they adapt, their factors and deltas.

Sites and factors are described only by widths and layers. This package does not
know the architecture that has them, nor the network that writes them.
"""
