"""YOPO: visual tokens are kept, most of what the decoder computes for them is not."""
