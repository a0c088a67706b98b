"""Inpainting: holes filled from the caption, masked words from the image; the pretraining task of the fused trunk."""
