"""Training on the transformers Trainer: feature cache, packing, parameter groups, stages."""
