"""Turn official releases and packaged weights into plain Hugging Face directories."""
