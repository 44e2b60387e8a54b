"""Are our numbers the recorded numbers? `compare` judges computed tensors against recorded ones."""
