"""Where random numbers come from: each is a function of names and numbers, never of what was drawn before.

So a run that is resumed, or that has another number of processes or threads, draws the same numbers, though no state of
a generator is saved. Three seeds decide:

data.seed       the order of the records, and for each record and epoch its task, template or caption, and whether the
                prompt is left out (`data/lanes.py`, `data/samples.py`)
seed            for each pack of training, the timesteps, the noise, and the draw from the VAE's distribution
                (`draw_of_pack`); for each step, how bf16 weights are rounded (`optim/rounding.py`)
sampling.seed   the starting noise of every picture that is drawn: by `generate` and `reconstruct`, and in the grids of
                a training run
"""

import hashlib

import torch


def stable_uniform(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but the parts, of which it takes the text (`str`).

    It is the same in every process, on every machine and in every release.
    """
    # Each part stands behind its length, so that ("a", "bc") and ("ab", "c") differ. A file's name may hold bytes that
    # are no UTF-8.
    text = "".join(f"{len(part)}:{part}" for part in map(str, parts))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def generator(*parts: object) -> torch.Generator:
    """A new generator on the CPU, whose seed depends on nothing but the parts, as in `stable_uniform`."""
    return torch.Generator().manual_seed(int(stable_uniform(*parts) * 2**53))


def draw_of_pack(seed: int, lane: int, number: int) -> torch.Generator:
    """The generator from which `Inputs.collate` draws every random number of one pack: timesteps, noise, masks.

    Args:
        seed: the seed of the run (`RunConfig.seed`).
        lane: the lane of the data that the pack belongs to.
        number: its place among the packs of that lane.
    """
    return generator("draw", seed, lane, number)
