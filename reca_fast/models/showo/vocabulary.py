"""The token ids of a Show-o: those of the text, then the marks, then the codes of pictures and the mask."""

from dataclasses import dataclass

MARKS = ("pad", "soi", "eoi", "sov", "eov", "t2i", "mmu", "t2v", "v2v", "lvg")
"""The marks in the order of their ids, which begin behind those of the text."""


@dataclass(frozen=True)
class Vocabulary:
    """Which token id means what, as the sizes of a checkpoint settle it."""

    text: int
    """How many ids the text has (llm_vocab_size)."""
    codebook: int
    """How many codes of pictures there are (codebook_size)."""
    eot: int
    """The id of <|endoftext|>, which opens and closes every text."""

    @property
    def bos(self) -> int:
        """Opens a text."""
        return self.eot

    @property
    def eos(self) -> int:
        """Closes a text, and each answer of a conversation."""
        return self.eot

    @property
    def pad(self) -> int:
        """Fills rows in the authors' batches; packs have none."""
        return self.text + MARKS.index("pad")

    @property
    def soi(self) -> int:
        """Opens a picture."""
        return self.text + MARKS.index("soi")

    @property
    def eoi(self) -> int:
        """Closes a picture."""
        return self.text + MARKS.index("eoi")

    @property
    def t2i(self) -> int:
        """Opens a sample whose picture is drawn from a text."""
        return self.text + MARKS.index("t2i")

    @property
    def mmu(self) -> int:
        """Opens a sample that begins with a picture to be understood."""
        return self.text + MARKS.index("mmu")

    @property
    def first_code(self) -> int:
        """The id of code 0; code c has the id first_code + c."""
        return self.text + len(MARKS)

    @property
    def mask(self) -> int:
        """Stands in place of a code that is to be said; the last id."""
        return self.first_code + self.codebook

    @property
    def size(self) -> int:
        """How many ids there are in all: rows of the embedding table and of the head."""
        return self.mask + 1


PUBLISHED_VOCABULARY = Vocabulary(text=50295, codebook=8192, eot=50256)
"""That of the checkpoints which the authors published."""
