"""Checkpoints that appear whole or not at all, and notice damage."""
