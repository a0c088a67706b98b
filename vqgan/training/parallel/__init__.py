"""Several processes: DDP, FSDP2, gradient accumulation, sharded tensors."""
