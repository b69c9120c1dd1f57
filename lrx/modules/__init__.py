"""LightningModules, one per way of training."""
