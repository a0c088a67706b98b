"""Networks of stage 2; no losses."""
