"""Stage 1: image tokenizers, and the data, training loop and metrics that both stages stand on."""
