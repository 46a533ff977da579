"""Data of the small world: prompts, moving digits and the input pipeline."""
