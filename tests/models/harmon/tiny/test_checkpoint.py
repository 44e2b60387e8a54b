"""The tiny checkpoint: the public layout, the same numbers every time, and a VAE that knows pictures."""

import torch

from reca_fast.models.bagel.tiny import VAE_FILE
from reca_fast.models.bagel.tiny.config import DEMO_VAE
from reca_fast.models.files import open_weights
from reca_fast.models.harmon import HarmonModel
from reca_fast.models.harmon.encoders import HarmonEncoders, latent_map
from reca_fast.models.harmon.tiny import write_tiny_checkpoint
from reca_fast.models.parts.kl_vae import draw_latents, picture_moments, read_kl_vae


def test_it_is_whole_and_the_same_every_time(tiny, tmp_path) -> None:
    assert "a whole Harmon checkpoint, 127 tensors in harmon_tiny.pth" in HarmonModel.check(tiny)
    write_tiny_checkpoint(tmp_path / "again", hidden_size=48, intermediate_size=64, mar_width=32)
    for name in ("harmon_tiny.pth", "kl16.ckpt"):
        with open_weights(tiny / name) as first, open_weights(tmp_path / "again" / name) as second:
            assert first.shapes == second.shapes
            assert all(torch.equal(first.tensor(key), second.tensor(key)) for key in first.shapes)


def test_its_vae_is_the_one_that_was_trained_on_photographs(tmp_path) -> None:
    """In another form: an attention that adds nothing, and a shift in a convolution."""
    config = write_tiny_checkpoint(tmp_path)
    encoders = HarmonEncoders(config)
    encoders.fill(tmp_path, tmp_path / "harmon_tiny.pth", "cpu")
    picture = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8)
    trained = read_kl_vae(VAE_FILE, DEMO_VAE).requires_grad_(False)
    moments = picture_moments(trained, picture)
    latents = draw_latents(DEMO_VAE, moments, torch.zeros(4, 4, 6))
    tokens = encoders.latents(picture, torch.float32)
    assert tokens.shape == (6, 16)
    torch.testing.assert_close(latent_map(tokens, (2, 3), 2), latents, atol=1e-5, rtol=1e-5)
    again = encoders.pictures(tokens, (2, 3), torch.float32)
    torch.testing.assert_close(again, trained.decode(latents[None])[0], atol=1e-5, rtol=1e-5)
