"""What a trained network is for: digits of one's own, a page to draw on, corrupted digits, a registry of models."""
