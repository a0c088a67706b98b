"""Losses that several objectives share."""
