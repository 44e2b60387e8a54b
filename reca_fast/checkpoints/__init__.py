"""Training state on disk: sharded, atomic, resumable with another number of processes."""

from .store import MAX_STATE_BYTES, STATE_FILE, CheckpointStore, SavedWeights, fault, folder_name

__all__ = ["MAX_STATE_BYTES", "STATE_FILE", "CheckpointStore", "SavedWeights", "fault", "folder_name"]
