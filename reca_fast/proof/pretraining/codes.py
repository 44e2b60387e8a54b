"""A MAGVIT-v2 for the toy world, trained for a minute: Show-o draws pictures out of its codes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reca_fast.models.parts.magvit import Magvit
from reca_fast.models.parts.magvit_config import MagvitConfig, MagvitHalf
from reca_fast.randomness import generator
from reca_fast.toy import detect, reconstruction_of, score

from .lessons import shown

_HALF = MagvitHalf(widths=(32, 32, 64), blocks=(1, 1, 1))
CODES = MagvitConfig(code_bits=10, width=32, encoder=_HALF, decoder=_HALF)
"""1024 codes, one for 4 x 4 pixels."""
STEPS, BATCH, PICTURES, LEARNING_RATE = 500, 16, 2048, 3e-3
BALANCE = 0.05
"""Weight of the squared mean of each bit: one that is nearly always set says nothing."""


def teach_codes(seed: int, steps: int, tell: Callable[[int, float], None]) -> Magvit:
    """A MAGVIT that draws pictures of the pools `base` and `understanding` again, frozen.

    Args:
        seed: of the weights and of the order of the pictures.
        tell: is called after every step with its number, from 1, and its loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        magvit = Magvit(CODES)
    pictures = torch.cat([shown(pool, range(PICTURES))[1] for pool in ("base", "understanding")])
    pixels = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.AdamW(magvit.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    for step in range(steps):
        chosen = torch.randint(len(pixels), (BATCH,), generator=generator("codes", seed, step))
        loss = reconstruction_loss(magvit, pixels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(magvit.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tell(step + 1, loss.item())
    return magvit.requires_grad_(False).eval()


@torch.no_grad()
def legible(magvit: Magvit, count: int = 200) -> float:
    """The share of validation scenes that the detector reads rightly after they went through the codes: whatever draws
    with these codes cannot do better.
    """
    scenes, pictures = shown("validation", range(count))
    drawn = magvit.decode(magvit.codes(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)).clamp(-1, 1)
    found = detect(((drawn + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
    return sum(score(reconstruction_of(s), seen) for s, seen in zip(scenes, found, strict=True)) / count


def reconstruction_loss(magvit: Magvit, pixels: Tensor) -> Tensor:
    """What is lost between pictures [B, 3, H, W] and those out of their codes. The gradient of a sign is that of a
    tanh.
    """
    assert magvit.decoder is not None
    soft = torch.tanh(magvit.z(pixels))
    signs = soft + (soft.detach().sign() - soft.detach())
    error = magvit.decoder(signs) - pixels
    loss: Tensor = error.square().mean() + 0.5 * error.abs().mean()
    return loss + BALANCE * soft.mean((0, 2, 3)).square().mean()
