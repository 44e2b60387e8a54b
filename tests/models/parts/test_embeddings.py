"""Embeddings of positions and times against their formulas, number by number."""

import math

import pytest
import torch

from reca_fast.models.parts.position import sincos_table
from reca_fast.models.parts.rotary import rotary_table
from reca_fast.models.parts.timestep import TimestepEmbedder


def test_the_position_table_is_made_of_sines_and_cosines() -> None:
    side, width = 3, 8
    table = sincos_table(side, width)
    assert table.shape == (9, 8) and table.dtype is torch.float32
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            expected = []
            for position in (column, row):
                angles = [position / 10000 ** (j / quarter) for j in range(quarter)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[row * side + column].tolist() == pytest.approx(expected, abs=1e-7)
    with pytest.raises(ValueError, match="needs a multiple of 4"):
        sincos_table(3, 6)


def test_rotary_angles_are_those_of_their_formula() -> None:
    positions, head_dim, theta = torch.tensor([0, 1, 7]), 6, 100.0
    cos, sin = rotary_table(positions, head_dim, theta, torch.float64)
    for row, position in enumerate(positions.tolist()):
        for j in range(head_dim // 2):
            angle = position / theta ** (2 * j / head_dim)
            for half in (j, j + head_dim // 2):
                assert cos[row, half].item() == pytest.approx(math.cos(angle))
                assert sin[row, half].item() == pytest.approx(math.sin(angle))


def test_features_of_a_timestep_are_cosines_then_sines() -> None:
    """The MLP is taken out: what is left are cosines, then sines."""
    embedder = TimestepEmbedder(256)
    embedder.mlp = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(256, 256))
    embedder.mlp[1].weight.data, embedder.mlp[1].bias.data = torch.eye(256), torch.zeros(256)
    times = torch.tensor([0.0, 0.25, 1.0])
    features = embedder(times)
    for row, t in enumerate(times.tolist()):
        angles = [t * 10000 ** (-j / 128) for j in range(128)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert features[row].tolist() == pytest.approx(expected, abs=1e-6)


def test_timestep_embedding_has_the_dtype_of_its_weights() -> None:
    embedder = TimestepEmbedder(32).bfloat16()
    assert embedder(torch.tensor([0.5])).dtype is torch.bfloat16
