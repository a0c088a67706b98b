"""Optimizers, EMA, precision and loss scale."""
