"""Videos and captions on disk, made into latents and embeddings to train on."""
