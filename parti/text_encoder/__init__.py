"""Pretraining of the text encoder before stage 2: masked tokens, and contrastive matching with images."""
