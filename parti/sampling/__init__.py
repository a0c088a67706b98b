"""From logits to codes."""
