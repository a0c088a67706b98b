"""What is watched while a run goes on: metrics, progress, trackers, values that are not finite."""
