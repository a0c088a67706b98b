"""What a stage-2 run will need, before it runs."""
