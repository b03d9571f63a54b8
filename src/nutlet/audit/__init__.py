"""The audit: every attack that can run, scored on the shipped file, before and after."""
