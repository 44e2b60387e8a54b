"""The codec of the toy world is the linear map that it is said to be, in AutoencoderDC's own layers."""

import torch

from reca_fast.models.openuni.dcae import decode, encode
from reca_fast.proof.pretraining.codec import codec_config, components, decoder_half, encoder_half, patches


def test_it_projects_patches_onto_their_principal_components() -> None:
    """Noise has no few components, so what is lost shows: the way through both halves is the projection, and nothing
    else, to a twentieth of a grey level.
    """
    pictures = torch.randint(256, (40, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    found = components(pictures, 48)
    config = codec_config(48, 0.7)
    encoder, decoder = encoder_half(config, found), decoder_half(config, found)
    rows = patches(pictures)
    projected = (rows - found.mean) @ found.directions.mT @ found.directions + found.mean

    latents = torch.stack([encode(encoder, config, picture, torch.float32) for picture in pictures])
    assert latents.shape == (40, 48, 4, 4)
    torch.testing.assert_close(latents.std(), torch.tensor(0.7 * found.spread), rtol=1e-3, atol=0)
    with torch.no_grad():
        pixels = decoder(latents / 0.7)
    torch.testing.assert_close(patches((pixels.permute(0, 2, 3, 1) + 1) * 127.5), projected, rtol=0, atol=3e-4)
    drawn = decode(decoder, config, latents, torch.float32)
    assert (patches(drawn) - projected.clamp(-1, 1)).abs().max() <= 1.01 / 127.5  # whole grey levels


def test_components_do_not_depend_on_the_machine() -> None:
    """An eigenvector's sign is arbitrary, and latents of another sign would fit no trained model."""
    pictures = torch.randint(256, (20, 16, 16, 3), generator=torch.Generator().manual_seed(1)).byte()
    directions = components(pictures, 8).directions
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()
    torch.testing.assert_close(directions @ directions.mT, torch.eye(8), rtol=0, atol=1e-5)
