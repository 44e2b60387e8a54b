"""The proof: what a model draws of the toy world, measured (`measure`), so that two checkpoints can be compared."""
