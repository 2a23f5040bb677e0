"""INF-LLaVA: dual-perspective cropping and enhancement of large pictures (arXiv 2407.16198)."""
