"""Masked image modeling: encoders that learn by predicting what was taken from an image. One paper a file."""
