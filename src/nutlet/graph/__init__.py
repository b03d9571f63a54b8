"""The model as data flow: its sites, the constraints on its weights, and edits of its structure."""
