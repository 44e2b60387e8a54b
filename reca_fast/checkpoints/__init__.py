"""Training state on disk: sharded, atomic, resumable with another number of processes."""

from .store import CheckpointStore, SavedWeights

__all__ = ["CheckpointStore", "SavedWeights"]
