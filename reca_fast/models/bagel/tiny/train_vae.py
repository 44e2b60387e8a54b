"""Train the tiny VAE, vae.safetensors beside this file: `python -m reca_fast.models.bagel.tiny.train_vae OUT`.

About eight minutes on one CPU core. It sees crops of the training photographs only, and ends with its score on the
held-out ones and the two numbers (scale and shift of the latents) that TinyConfig must state.
"""

import sys

import numpy as np
import torch
from torch import Tensor

from reca_fast.models.bagel.tiny.config import TinyConfig
from reca_fast.models.bagel.tiny.photos import Split, crops
from reca_fast.models.parts.kl_vae import KLVAE, save_kl_vae

STEPS, BATCH, POOL, LEARNING_RATE = 2400, 8, 3000, 3e-3
EDGES, KL = 0.5, 1e-3
"""Weights beside the L1 error: of the error in differences between neighbours, and of the divergence per latent."""


def pixels(split: Split, count: int, seed: int) -> Tensor:
    """Crops as fp32 [count, 3, 64, 64] in [-1, 1]."""
    stack = np.stack([np.asarray(crop) for _, crop in crops(split, count, 64, seed)])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def posterior(vae: KLVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [B, z, h, w] of z, before scale and shift."""
    mean, logvar = vae.moments(x).chunk(2, dim=1)
    return mean, logvar


def loss(vae: KLVAE, x: Tensor, noise: Tensor) -> Tensor:
    """Scalar: L1 + EDGES * L1 of neighbour differences + KL * divergence from N(0, 1) per latent."""
    assert vae.decoder is not None
    mean, logvar = posterior(vae, x)
    error = vae.decoder(mean + torch.exp(0.5 * logvar) * noise) - x
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss: Tensor = error.abs().mean() + EDGES * edges + KL * divergence
    return loss


def train(config: TinyConfig) -> KLVAE:
    """AdamW with warm-up and cosine decay, everything from seed 0."""
    torch.manual_seed(0)
    vae, x = KLVAE(config.vae), pixels("train", POOL, seed=0)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        side = 40 if step < 0.8 * STEPS else 64  # small parts first: they cost 40 % and teach the same textures
        top, left = torch.randint(0, 65 - side, (2,)).tolist()
        batch = x[torch.randint(0, POOL, (BATCH,)), :, top : top + side, left : left + side]
        cells = side // vae.downsample
        value = loss(vae, batch, torch.randn(BATCH, config.vae.z_channels, cells, cells))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {value.item():.4f}", flush=True)
    return vae.eval()


@torch.no_grad()
def report(vae: KLVAE) -> None:
    """Print PSNR (peak 255) of mean reconstructions on both splits, and the scale and shift of the latents."""
    assert vae.decoder is not None
    splits: tuple[Split, Split] = ("train", "held_out")
    for split in splits:
        x = pixels(split, 128, seed=1)
        seen = vae.decoder(posterior(vae, x)[0]).clamp(-1, 1)
        psnr = -10 * ((seen - x) / 2).square().mean(dim=(1, 2, 3)).log10()
        print(f"{split}: PSNR {psnr.mean():.2f} dB (worst {psnr.min():.2f}, best {psnr.max():.2f})")
    mean, logvar = posterior(vae, pixels("train", 512, seed=2))
    z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    per_channel = ", ".join(f"{s:.2f}" for s in z.std(dim=(0, 2, 3)))
    print(f"scale_factor={1 / z.std():.4f}, shift_factor={z.mean():.4f} (channel deviations {per_channel})")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m reca_fast.models.bagel.tiny.train_vae OUT")
    torch.set_num_threads(1)  # the sums, and so the file, must not depend on the number of cores
    trained = train(TinyConfig())
    save_kl_vae(trained, sys.argv[1])
    report(trained)
