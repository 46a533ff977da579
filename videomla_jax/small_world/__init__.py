"""A world of moving digits that a laptop trains on: data, model and judge."""
