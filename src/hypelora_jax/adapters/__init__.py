"""LoRA adapters as plain data: which projections they adapt, their factors and deltas.

Sites and factors are described only by widths and layers. The architecture that has
them, and the network that writes them, may not come in.
"""
