"""Translates between our parameter trees and the files of others, both ways.

Hugging Face's models, peft's adapters and the reference's states are read and written
strictly; their names come from the family. Nothing here knows runs or training.
"""
