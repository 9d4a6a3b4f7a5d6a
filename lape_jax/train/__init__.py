"""Training: configuration, state, optimiser, sharding, checkpoints, the loop."""
