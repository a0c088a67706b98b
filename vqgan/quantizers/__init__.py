"""From latents to codes and back."""
