"""Partially autoregressive captioning with the fused trunk."""
