"""What examples and tasks give to the hyper-network, made before training.

A frozen encoder embeds descriptions, label names and sentences. Nothing here trains.
"""
