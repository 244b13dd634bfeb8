"""Training: the model and its step, objectives, optimizers and callbacks."""
