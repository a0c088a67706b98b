"""Checks a data set before training: reads it as training would, and reports problems by name and cause."""
