"""Enlarge generated images: a super-resolution network that learns on what an image tokenizer decodes."""
