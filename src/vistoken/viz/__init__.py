"""Pictures of what a model does with a picture."""
