"""From released checkpoints to model folders, to latent attention and back."""
