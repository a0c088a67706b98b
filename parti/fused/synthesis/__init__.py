"""Progressive text to image from the fused trunk."""
