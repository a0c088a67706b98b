"""What stage 1 minimizes; no networks of stage 1."""
