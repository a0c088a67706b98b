"""A text encoder learns to read before stage 2: masked tokens, and which picture a caption belongs to."""
