"""LoRA adapters as plain data: which projections they adapt, their factors and deltas.

Sites and factors are described by widths and layers alone. Which architecture has them,
and which network writes them, may not come in.
"""
