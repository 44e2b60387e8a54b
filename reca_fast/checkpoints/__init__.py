"""Training checkpoints on disk. A kill cannot spoil them, and any number of processes can load them."""

from .store import MAX_STATE_BYTES, STATE_FILE, CheckpointStore, SavedWeights, fault, folder_name

__all__ = ["MAX_STATE_BYTES", "STATE_FILE", "CheckpointStore", "SavedWeights", "fault", "folder_name"]
