"""SAISA and NAAViT: visual tokens that are keys and values only (arXiv 2502.02458)."""
