"""The VAE of BAGEL and Harmon at toy size is the linear map that it is said to be, and scenes survive it."""

import pytest
import torch
import torch.nn.functional as F

from reca_fast.proof.pretraining.halving import MEAN, halving_config, halving_vae
from reca_fast.proof.pretraining.lessons import shown
from reca_fast.toy import detect, reconstruction_of, score


@pytest.mark.parametrize("as_in_mar", [False, True], ids=["BAGEL", "Harmon"])
def test_latents_are_the_picture_of_half_the_side(as_in_mar) -> None:
    scenes, pictures = shown("validation", range(60))
    pixels = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = halving_vae(halving_config(0.5, as_in_mar=as_in_mar))
    moments = vae.moments(pixels)
    latents = vae.sample(moments, torch.randn(moments[:, :3].shape, generator=torch.Generator().manual_seed(0)))
    halved = F.avg_pool2d(pixels, 2)
    torch.testing.assert_close(latents / vae.config.scale_factor + MEAN, halved, rtol=0, atol=5e-4)
    assert abs(latents.mean()) < 0.05 and abs(latents.std() - 0.5) < 0.03

    drawn = ((vae.decode(latents).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    found = detect(drawn.contiguous().numpy())
    passed = sum(score(reconstruction_of(scene), seen) for scene, seen in zip(scenes, found, strict=True))
    assert passed >= 58


def test_the_decoder_is_linear() -> None:
    vae = halving_vae(halving_config(0.5))
    one, other = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    parts = [vae.decode(each) for each in (one, other, torch.zeros_like(one), one + other)]
    torch.testing.assert_close(parts[0] + parts[1] - parts[2], parts[3], rtol=0, atol=2e-3)
