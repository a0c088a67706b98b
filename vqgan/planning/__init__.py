"""What a run will need, before it runs: memory, arithmetic and time, without memory for any tensor."""
