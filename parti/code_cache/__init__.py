"""Cache of image codes, captions and text ids: stage 2 then trains without the image tokenizer."""
