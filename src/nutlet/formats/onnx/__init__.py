"""The shipped file: one exporter to a file."""
