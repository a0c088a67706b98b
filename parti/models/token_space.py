"""The text and image vocabularies of a stage-2 model."""

from pydantic import Field

from vqgan.config.schema import Config


class TokenSpace(Config):
    """Sizes given by the text tokenizer and the image tokenizer; a model is built for exactly these."""

    text_vocab_size: int = Field(gt=0)
    """Number of text tokens, special ones included."""
    text_length: int = Field(gt=0)
    """Text positions T; shorter captions are padded."""
    text_pad_id: int = Field(0, ge=0)
    """Id of the padding token."""
    image_vocab_size: int = Field(gt=1)
    """Number of image codes V."""
    image_grid: tuple[int, int] = Field(strict=False)
    """Code grid (h, w); an image is h * w codes in row-major order."""

    @property
    def image_length(self) -> int:
        """Number N of codes in an image."""
        return self.image_grid[0] * self.image_grid[1]
