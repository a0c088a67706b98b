"""Stage 2: from text to image tokens, and from there to pictures."""
