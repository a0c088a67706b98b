"""Masked image modeling: encoders that learn by telling what was taken from an image. One paper a file."""
