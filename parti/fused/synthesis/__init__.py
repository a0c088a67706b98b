"""Progressive text-to-image generation with the fused trunk."""
