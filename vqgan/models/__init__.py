"""Networks of stage 1; no losses."""
