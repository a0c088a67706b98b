"""What stage 1 minimises; no networks of stage 1."""
