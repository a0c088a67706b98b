"""Planner of stage-2 runs: memory, FLOPs and time before a run."""
