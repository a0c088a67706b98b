"""The feed-forward of Parti's blocks (arXiv 2206.10789, figure 5): two layers with a ReLU between them."""

from torch import nn


def feed_forward(width: int, mlp_width: int) -> nn.Sequential:
    """Position by position: width -> mlp_width -> width."""
    return nn.Sequential(nn.Linear(width, mlp_width), nn.ReLU(), nn.Linear(mlp_width, width))
