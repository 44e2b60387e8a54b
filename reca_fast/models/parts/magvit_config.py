"""Sizes of a MAGVIT-v2 tokenizer. Its public folder states none, so they are read from the shapes of its tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from reca_fast.errors import UserError


@dataclass(frozen=True)
class MagvitHalf:
    """Sizes of an encoder or a decoder, level by level from the full picture to the smallest one."""

    widths: tuple[int, ...]
    """Channels of each level."""
    blocks: tuple[int, ...]
    """Residual blocks of each level."""


@dataclass(frozen=True)
class MagvitConfig:
    """Sizes of a MAGVIT-v2 tokenizer."""

    code_bits: int
    """Channels of the encoder's output; the sign of each is one bit of a code."""
    width: int
    """Channels of the encoder's first convolution."""
    encoder: MagvitHalf
    decoder: MagvitHalf

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return int(2**self.code_bits)

    @property
    def downsample(self) -> int:
        """Pixels per code along one side."""
        return int(2 ** (len(self.encoder.widths) - 1))

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], where: str, under: str = "") -> "MagvitConfig":
        """From the names and shapes of a file's tensors.

        Args:
            shapes: name -> shape of every tensor in the file.
            where: the file, for messages.
            under: prefix of the tokenizer's names in it.

        Raises:
            UserError: the file holds no MAGVIT-v2 tokenizer.
        """
        try:
            bits = shapes[f"{under}encoder.conv_out.weight"][0]
            width = shapes[f"{under}encoder.conv_in.weight"][0]
            encoder = _half(shapes, f"{under}encoder.down.")
            decoder = _half(shapes, f"{under}decoder.up.")
        except (KeyError, IndexError, ValueError):
            raise UserError(
                f"{where} holds no MAGVIT-v2 tokenizer: its encoder.* and decoder.* tensors are missing or incomplete; "
                "take pytorch_model.safetensors of the public magvitv2 folder."
            ) from None
        if not 1 <= bits <= 24 or len(encoder.widths) != len(decoder.widths):
            raise UserError(
                f"{where} has codes of {bits} bits and {len(encoder.widths)} levels down, {len(decoder.widths)} up; "
                "a MAGVIT-v2 tokenizer has 1 to 24 bits and as many levels up as down."
            )
        return cls(bits, width, encoder, decoder)


def _half(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> MagvitHalf:
    """The sizes of the levels whose names begin with a prefix; ValueError where there are none, or numbers are left
    out.
    """
    pattern = re.compile(re.escape(prefix) + r"(\d{1,3})\.block\.(\d{1,3})\.conv2\.weight")
    found = {tuple(map(int, match.groups())): shapes[match[0]] for match in map(pattern.fullmatch, shapes) if match}
    levels = 1 + max(level for level, _ in found)
    blocks = tuple(sum(each == level for each, _ in found) for level in range(levels))
    if sorted(found) != [(level, block) for level in range(levels) for block in range(blocks[level])]:
        raise ValueError("blocks are missing")
    return MagvitHalf(tuple(found[level, 0][0] for level in range(levels)), blocks)


MAGVIT_V2 = MagvitConfig(
    code_bits=13,
    width=128,
    encoder=MagvitHalf(widths=(128, 256, 256, 512, 512), blocks=(4, 3, 4, 3, 4)),
    decoder=MagvitHalf(widths=(128, 128, 256, 256, 512), blocks=(4, 4, 3, 4, 3)),
)
"""The sizes of the public tokenizer: 95.4 million parameters, 8192 codes, one for 16 x 16 pixels."""
