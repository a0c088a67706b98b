"""The one error of this room."""


class RefusedImageError(Exception):
    """An image without a sensible meaning, or one that would cost too much; the message becomes the cause."""
