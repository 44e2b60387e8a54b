"""A pool of the toy world as conversations: `data.instructions: toy:understanding`. The answers are dense captions."""

from dataclasses import replace

from reca_fast.data.records import Record
from reca_fast.data.sources.toy import PREFIX, ToySource
from reca_fast.sample import Turn


class ToyConversations(ToySource):
    """The pictures of one pool, each with its dense caption as what is said about it. Keys are like
    "toy:understanding/000012", which no picture of `data.source` has.

    Args:
        pool: understanding, base, posttraining or validation.

    Raises:
        UserError: there is no such pool.
    """

    def __init__(self, pool: str) -> None:
        super().__init__(pool, "dense")
        self.texts = f"dense captions of {pool}"  # what tells them apart from the conversations of a file

    def key(self, index: int) -> str:
        return PREFIX + super().key(index)

    def read(self, index: int) -> Record:
        record = super().read(index)
        assert isinstance(record.caption, str), "a caption that is asked for by name is one text"
        return replace(record, key=self.key(index), caption=None, turns=(Turn("", record.caption),))

    def says_left_out(self) -> str:
        """Nothing is."""
        return ""
