"""Text tokenizers and encoders."""
