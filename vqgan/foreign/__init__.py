"""Weights of other projects' image tokenizers as our own autoencoders; one format a file.

Each format is a pure function from tensors that were already read (`reading`) to an `Autoencoder`; converted once,
the tokenizer is saved as a model folder like any other.
"""
