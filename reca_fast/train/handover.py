"""Batches are on the device before a step asks for them: copied by the loader's threads, on a stream of their own."""

from collections.abc import Iterator
from typing import TypeVar

import torch

from reca_fast.data.inputs import Batch

T = TypeVar("T")


class Handover:
    """Copies batches to a GPU while it computes the steps before. On a CPU it does nothing: there is nothing to copy.

    Price: the batches of `data.prefetch` packs lie on the device too, 4 MB for a picture of 1024 x 1024.

    A copy is made on another stream than the step, so its memory must not be given to the next copy while the step
    still reads it. That is settled once in a step, in `take`: what is copied from then on waits for all work that was
    queued until then, and a batch is dropped only after that.

    Args:
        device: of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, batch: Batch) -> Batch | None:
        """The batch on the device, the copies under way; None on a CPU. Called in the loader's threads."""
        if self.stream is None:
            return None
        with torch.cuda.stream(self.stream):
            return batch.to(self.device)

    def take(self, packs: Iterator[T]) -> T:
        """The next step's packs, whose copies the device, and not the host, waits for. The packs of the step before
        are to be dropped after this, not earlier.
        """
        if self.stream is None:
            return next(packs)
        computing = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(computing)
        taken = next(packs)
        computing.wait_stream(self.stream)
        return taken
