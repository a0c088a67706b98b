"""Encoded images before they are decoded: what in a file the pixels need, and what it would cost."""
