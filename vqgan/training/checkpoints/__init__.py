"""Checkpoints: atomic, and checked against damage."""
