"""LLaVA-SP: six visual spatial tokens by convolutions over the patch grid (arXiv 2507.00505)."""
