"""From an encoded image to a square tensor."""
