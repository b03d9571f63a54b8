"""From a recipe to a compressed model, checked and verified at every step."""
