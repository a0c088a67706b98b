"""What lies in a folder of images: listing, captions, metadata, splits, and what is not used."""
