"""Losses shared by several objectives."""
