"""A text encoder learns to read before stage 2: masked tokens, and which image a caption belongs to."""
