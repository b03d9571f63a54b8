"""nutlet: a small model in a hard shell."""
