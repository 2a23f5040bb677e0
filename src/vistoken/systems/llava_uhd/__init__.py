"""LLaVA-UHD: slices of any size, a resampler with regions, and a spatial schema."""
