"""Write BAGEL's public checkpoint folder at its full size, 29 GB, with holes for data: it takes a megabyte of disk.

    python -m bench.sparse_checkpoint FOLDER [--layers 2] [--dtype fp32]

Names, shapes, dtypes and headers are the public ones, and every number is 0. It shows how much memory of the host it
takes to open such a file, to train, sample and export from it (tests/models/bagel/test_full_size.py).
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from reca_fast.models.bagel.config import BAGEL_7B_MOT, BagelConfig
from reca_fast.models.bagel.encoders import VAE_FILE, BagelEncoders
from reca_fast.models.bagel.names import NETWORK_NAMES, TABLES, VIT_NAMES
from reca_fast.models.bagel.network import Bagel
from reca_fast.models.bagel.tiny.tokenizer import write_tokenizer
from reca_fast.models.bagel.weights import WEIGHTS_FILE
from reca_fast.models.files.folder import write_object
from reca_fast.models.files.write import Stored, header_of
from reca_fast.models.parts.kl_vae import KLVAE
from reca_fast.models.parts.kl_vae_names import kl_vae_names

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_sparse_file(path: Path, layout: Mapping[str, Stored]) -> None:
    """Write a safetensors file whose header is whole and whose data is one hole.

    Args:
        layout: key -> dtype and shape, of every tensor.
    """
    header = header_of(layout)
    size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in layout.values())
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + size)


def write_sparse_checkpoint(
    folder: Path,
    layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    config: BagelConfig = BAGEL_7B_MOT,
) -> None:
    """Write a checkpoint folder. Its tokenizer is a small one, which the public vocabulary holds.

    Args:
        folder: made if it is not there.
        layers: of the decoder; None is the public 28.
        dtype: of the weights; the VAE's are fp32.
        config: the sizes, by default the public ones.
    """
    if layers is not None:
        config = replace(config, llm=replace(config.llm, num_hidden_layers=layers))
    with torch.device("meta"):
        model, vae = Bagel(config, freeze_und=False), KLVAE(config.vae)
    layout: dict[str, Stored] = {}
    for module, names in ((model, NETWORK_NAMES), (BagelEncoders(config).vit, VIT_NAMES)):
        layout |= {names.key(name): Stored(dtype, tuple(x.shape)) for name, x in module.state_dict().items()}
    for key in TABLES:
        layout[key] = Stored(dtype, tuple(model.get_buffer(key.removesuffix(".pos_embed")).shape))
    folder.mkdir(parents=True, exist_ok=True)
    write_sparse_file(folder / WEIGHTS_FILE, layout)
    names = kl_vae_names(config.vae)
    stored = {names.key(n): Stored(torch.float32, names.stored_shape(n, x.shape)) for n, x in vae.state_dict().items()}
    write_sparse_file(folder / VAE_FILE, stored)
    write_object(folder / "llm_config.json", asdict(config.llm))
    write_object(folder / "vit_config.json", asdict(config.vit))
    write_tokenizer(folder, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="of the decoder (all 28)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    options = parser.parse_args()
    write_sparse_checkpoint(options.folder, options.layers, DTYPES[options.dtype])
    size = (options.folder / WEIGHTS_FILE).stat()
    print(
        f"{options.folder}: {size.st_size / 1e9:.2f} GB, of which {size.st_blocks * 512 / 1e6:.1f} MB are on the disk."
    )


if __name__ == "__main__":
    main()
