"""The training loop, its losses, and what a method is given at run time."""
