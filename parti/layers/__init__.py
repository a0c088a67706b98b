"""Building blocks of the stage-2 networks."""
