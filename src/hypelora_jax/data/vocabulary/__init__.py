"""The vocabulary of a model: the tokenizer that the files of its folder describe.

They are read as transformers reads them, so that a text has the same ids in both.
"""
