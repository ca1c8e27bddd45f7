"""Training: the Lightning module, exact resume, checkpoints, optimisers, the teacher's cache, settings."""
