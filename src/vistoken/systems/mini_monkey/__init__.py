"""Mini-Monkey: two tilings of a picture, and fewer tokens of the finer one (arXiv 2408.02034)."""
