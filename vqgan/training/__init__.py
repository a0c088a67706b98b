"""One loop for every objective; imports no model."""
