"""Attacks with the shipped file in hand."""
