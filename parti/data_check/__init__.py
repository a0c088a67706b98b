"""A data set read as training would read it, before any training: what is wrong with it, by name and cause."""
