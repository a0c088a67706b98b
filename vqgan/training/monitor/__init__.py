"""Monitoring of a run: metrics, progress, trackers, non-finite values."""
