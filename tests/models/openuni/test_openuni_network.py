"""Joints of the network that the published models do not all use, and the order in which patches are joined."""

from dataclasses import replace

import pytest
import torch

from reca_fast.models.openuni.batch import make_batch
from reca_fast.models.openuni.folder import trained_sizes
from reca_fast.models.openuni.names import NETWORK_NAMES
from reca_fast.models.openuni.network import OpenUni
from reca_fast.models.openuni.tiny import TinyConfig
from reca_fast.models.openuni.tiny.checkpoint import begin
from reca_fast.models.openuni.vit import join_patches

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = TinyConfig(layers=1, sana_layers=1, connector_layers=1, queries=4).config()


@pytest.mark.parametrize(
    ("kind", "width", "layers"),
    [
        ("enc_proj", 64, {"": (48, 64)}),
        ("proj_enc", 48, {"": (48, 64)}),
        ("proj_enc_proj", 32, {"0.": (32, 64), "1.": (48, 32)}),
    ],
)
def test_the_projector_stands_behind_the_connector_or_before_it_or_both(kind, width, layers) -> None:
    connector = replace(TINY.connector, hidden_size=width, num_attention_heads=1)
    network = OpenUni(replace(TINY, connector=connector, projector=kind))
    for name, parameter in network.named_parameters():
        begin(name, parameter.data)
    stored = {NETWORK_NAMES.key(name): tuple(p.shape) for name, p in network.named_parameters()}
    assert {key: stored[f"projector.{key}weight"] for key in layers} == layers
    sizes = trained_sizes(stored, "a file", 48)
    assert sizes["projector"] == kind and sizes["connector"].hidden_size == width
    batch = make_batch([[1, 2, 3], [4]], [(2, 3), (2, 3)], 4, 99, tasks=["t2i", "t2i"])
    context = network.context(batch)
    assert context.shape == (2 * 4, 48)
    context.square().sum().backward()
    trained = [p for p in (network.meta_queries, *network.projector.parameters(), *network.connector.parameters())]
    assert all(p.grad is not None for p in trained)


def test_a_connector_that_fits_neither_side_is_refused() -> None:
    with pytest.raises(ValueError, match="the connector is 32 wide where a projector of the kind enc_proj wants 64"):
        replace(TINY, connector=replace(TINY.connector, hidden_size=32, num_attention_heads=1))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_patches_are_joined_in_squares(version) -> None:
    rows, columns = 4, 6
    patches = torch.arange(rows * columns * 2.0).view(rows, columns, 2)
    joined = join_patches(patches, 2, version)
    squares = {(r, c): patches[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten() for r in range(2) for c in range(3)}
    order = sorted(squares) if version == "v2" else sorted(squares, key=lambda place: place[::-1])
    assert torch.equal(joined, torch.stack([squares[place] for place in order]))
