"""Draw several images of a prompt and keep the one that a contrastive model finds fitting best."""
