"""What is measured; imports no model."""
