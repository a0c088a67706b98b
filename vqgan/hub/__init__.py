"""Model folders, here and on the Hugging Face Hub: nothing in them is executed, everything is bounded."""
