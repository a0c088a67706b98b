"""README.md of a model on the Hub: what it is, its sizes and how to use it. Every metric is the model's own."""

from collections.abc import Mapping
from typing import Any

import yaml

from vqgan.models.autoencoder import Autoencoder

LIBRARY = "parti-toolkit"


def model_card(head: Mapping[str, Any], title: str, what: str, facts: Mapping[str, str], usage: str) -> str:
    """Returns a card: the Hub's YAML `head`, a sentence, a table of `facts` and an example of use."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return (
        f"---\n{yaml.safe_dump({'library_name': LIBRARY, **head}, sort_keys=False)}---\n\n# {title}\n\n{what}\n\n"
        f"| | |\n|---|---|\n{rows}\n\n```python\n{usage}\n```\n"
    )


def image_tokenizer_card(name: str, autoencoder: Autoencoder, vocab_size: int, grid: tuple[int, int]) -> str:
    """Returns the card of an image tokenizer that is called `name` on the Hub; `grid` is that of its codes."""
    config = autoencoder.config.model_dump(mode="json")
    side, codes = autoencoder.image_size, grid[0] * grid[1]
    return model_card(
        {"tags": ["image-tokenizer", "vqgan", config["kind"]]},
        name,
        f"An image tokenizer of {LIBRARY}: images to discrete codes, and back.",
        {
            "Model": f"`{config['kind']}`, quantizer `{config['quantizer']['kind']}`",
            "Parameters": f"{sum(weight.numel() for weight in autoencoder.parameters()):,}",
            "Images": f"{side}x{side}, RGB",
            "Codes of an image": f"{grid[0]}x{grid[1]}, each one of {vocab_size:,}",
        },
        "from vqgan import ImageTokenizer\n\n"
        f'tokenizer = ImageTokenizer.from_pretrained("{name}")\n'
        f"codes = tokenizer.encode(images)  # (B, 3, {side}, {side}) in [-1, 1] -> (B, {codes})\n"
        "images = tokenizer.decode(codes)",
    )
