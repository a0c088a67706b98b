"""Image codes, captions and text ids, made once and kept: stage 2 then trains without the image tokenizer."""
