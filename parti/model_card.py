"""README.md of a text-to-image model on the Hub."""

from parti.models import Generator
from parti.sampling.generate import SamplingConfig
from vqgan.model_card import LIBRARY, model_card


def text_to_image_card(name: str, generator: Generator, image_size: int, sampling: SamplingConfig) -> str:
    """Returns the card of a model that is called `name` on the Hub and generates images with sides of `image_size`
    pixels."""
    kind, tokens = generator.config.model_dump(mode="json")["kind"], generator.tokens
    height, width = tokens.image_grid
    settings = ", ".join(f"{key} {value}" for key, value in sampling.model_dump(mode="json").items())
    return model_card(
        {"pipeline_tag": "text-to-image", "tags": ["text-to-image", "autoregressive", kind]},
        name,
        f"A text-to-image transformer of {LIBRARY}, with its text tokenizer and its image tokenizer.",
        {
            "Model": f"`{kind}`",
            "Parameters": f"{sum(weight.numel() for weight in generator.parameters()):,}, without the image tokenizer",
            "Text": f"{tokens.text_length} tokens, each one of {tokens.text_vocab_size:,}",
            "Images": f"{image_size}x{image_size}, RGB",
            "Codes of an image": f"{height}x{width}, each one of {tokens.image_vocab_size:,}",
            "Sampling, where nothing else is asked for": settings,
        },
        "from parti import TextToImage\n\n"
        f'model = TextToImage.from_pretrained("{name}")\n'
        'images = model("your prompt", num_images=4, seed=0).images',
    )
