"""Images and captions, from wherever they are to batches."""
