"""The page that shows a finished demo."""
