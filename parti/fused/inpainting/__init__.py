"""Filling holes by the caption and words by the picture: the pretraining task of the fused trunk."""
