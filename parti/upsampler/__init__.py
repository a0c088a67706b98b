"""Super-resolution of generated images, trained on reconstructions of an image tokenizer."""
