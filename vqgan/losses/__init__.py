"""Losses of stage 1; no networks of stage 1."""
