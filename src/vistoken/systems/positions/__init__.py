"""Patch tokens that know their place: learned row and column embeddings."""
