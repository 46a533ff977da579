"""Digits in colour that bounce, in front of a background and behind a wall."""
