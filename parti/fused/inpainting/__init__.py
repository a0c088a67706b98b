"""Filling holes by the caption and words by the image: the pretraining task of the fused trunk."""
