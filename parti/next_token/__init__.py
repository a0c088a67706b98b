"""Training of both generators: the next token of text and image codes."""
