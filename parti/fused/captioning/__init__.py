"""Partially autoregressive captions from the fused trunk."""
