"""Latents as rows of tokens."""

import torch

from reca_fast.models.harmon.encoders import latent_map, latent_tokens


def test_a_token_holds_channels_then_rows_then_columns_of_its_patch() -> None:
    latents = torch.arange(2 * 4 * 6).view(2, 4, 6)
    tokens = latent_tokens(latents, 2)
    assert tokens.shape == (6, 8)
    assert tokens[0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31]  # both channels' upper left squares
    assert tokens[1][:2].tolist() == [2, 3] and tokens[3][:2].tolist() == [12, 13]  # to the right, then down
    assert torch.equal(latent_map(tokens, (2, 3), 2), latents)


def test_with_patches_of_one_cell_a_token_is_a_cell() -> None:
    latents = torch.randn(3, 2, 5)
    assert torch.equal(latent_tokens(latents, 1), latents.flatten(1).T)
