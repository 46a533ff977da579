"""Measurements of models and of what they generate."""
