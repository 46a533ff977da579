"""VideoMLA in JAX: minute-long video through a latent ring-buffer cache."""

__version__ = "0.1.0"
