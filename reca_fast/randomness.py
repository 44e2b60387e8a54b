"""Where random numbers come from: every draw is a function of names and numbers, never of what was drawn before.

So a resumed run, or one with another number of processes or threads, repeats its draws without any saved state.
"""

import hashlib

import torch


def stable_uniform(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts (by their str) alone: the same in every process and release."""
    # Lengths in front, so that ("a", "bc") and ("ab", "c") differ; file names may hold bytes that are not UTF-8.
    text = "".join(f"{len(part)}:{part}" for part in map(str, parts))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def generator(*parts: object) -> torch.Generator:
    """A CPU generator whose seed depends on the parts alone, as in `stable_uniform`."""
    return torch.Generator().manual_seed(int(stable_uniform(*parts) * 2**53))


def draw_of_pack(seed: int, lane: int, number: int) -> torch.Generator:
    """The generator from which every random number of one pack is drawn: timesteps, noise, masks.

    Args:
        seed: of the run (`RunConfig.seed`).
        lane, number: which lane of the data the pack belongs to, and its place among the packs of that lane.
    """
    return generator("draw", seed, lane, number)
