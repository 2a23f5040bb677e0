"""LLaVA-1.5 and LLaVA-NeXT, the baseline: views, projector, pooling and layouts."""
