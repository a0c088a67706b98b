"""Data sources by kind: folders, Hugging Face data sets, mixtures, shapes, OpenMoji."""
