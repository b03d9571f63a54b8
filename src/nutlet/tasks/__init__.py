"""What outputs mean: one task to a file."""
