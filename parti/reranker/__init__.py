"""Reranking: generate several images of a prompt and keep the one with the best contrastive score."""
