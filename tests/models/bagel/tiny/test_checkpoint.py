"""The tiny checkpoint folder: exactly the public keys, the same bytes from the same seed, a tokenizer that opens."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from reca_fast.errors import UserError
from reca_fast.kernels import Varlen
from reca_fast.models.bagel.config import BagelConfig
from reca_fast.models.bagel.encoders import BagelEncoders
from reca_fast.models.bagel.network import Bagel
from reca_fast.models.bagel.tiny import write_tiny_checkpoint
from reca_fast.models.bagel.tiny.config import TinyConfig
from reca_fast.models.bagel.tokenizer import MARKERS, open_tokenizer
from reca_fast.models.bagel.weights import fill_bagel
from reca_fast.models.files import uniform
from reca_fast.models.parts.kl_vae import read_kl_vae
from reca_fast.models.parts.kl_vae_config import KLVAEConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder)
    return folder


def public_shapes(c: TinyConfig) -> dict[str, list[int]]:
    """Key -> shape of a BAGEL model file, by formula."""
    d, head, kv = c.hidden_size, c.hidden_size // c.heads, c.kv_heads * c.hidden_size // c.heads
    und = {
        "input_layernorm.weight": [d],
        "post_attention_layernorm.weight": [d],
        "mlp.gate_proj.weight": [c.intermediate_size, d],
        "mlp.up_proj.weight": [c.intermediate_size, d],
        "mlp.down_proj.weight": [d, c.intermediate_size],
        "self_attn.o_proj.weight": [d, d],
        "self_attn.q_norm.weight": [head],
        "self_attn.k_norm.weight": [head],
    }
    for name, width in (("q", d), ("k", kv), ("v", kv)):
        und |= {f"self_attn.{name}_proj.weight": [width, d], f"self_attn.{name}_proj.bias": [width]}
    gen = {}
    for key, shape in und.items():
        module, kind = key.rsplit(".", 1)
        gen[key.replace("mlp.", "mlp_moe_gen.") if "mlp" in key else f"{module}_moe_gen.{kind}"] = shape
    shapes = {f"language_model.model.layers.{i}.{k}": s for i in range(c.layers) for k, s in (und | gen).items()}
    shapes |= {
        "language_model.model.embed_tokens.weight": [c.vocab_size, d],
        "language_model.lm_head.weight": [c.vocab_size, d],
        "language_model.model.norm.weight": [d],
        "language_model.model.norm_moe_gen.weight": [d],
        "latent_pos_embed.pos_embed": [c.latent_side**2, d],
        "vit_pos_embed.pos_embed": [c.vit_side**2, d],
    }
    v, latent = c.vit_hidden_size, 4 * c.vae.z_channels
    tower = {"embeddings.patch_embedding": [v, 588], "post_layernorm": [v]}
    for j in range(c.vit_layers):
        tower |= {f"encoder.layers.{j}.self_attn.{name}_proj": [v, v] for name in ("q", "k", "v", "out")}
        tower |= {f"encoder.layers.{j}.layer_norm{n}": [v] for n in (1, 2)}
        tower[f"encoder.layers.{j}.mlp.fc1"] = [c.vit_intermediate_size, v]
        tower[f"encoder.layers.{j}.mlp.fc2"] = [v, c.vit_intermediate_size]
    biased = {f"vit_model.vision_model.{name}": shape for name, shape in tower.items()}
    biased |= {"connector.fc1": [d, v], "connector.fc2": [d, d], "vae2llm": [d, latent], "llm2vae": [latent, d]}
    biased |= {"time_embedder.mlp.0": [d, 256], "time_embedder.mlp.2": [d, d]}
    shapes |= {f"{name}.weight": shape for name, shape in biased.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in biased.items()}
    shapes["vit_model.vision_model.embeddings.position_embedding.weight"] = [c.vit_side**2, v]
    return shapes


def test_the_formula_counts_the_public_model() -> None:
    public = TinyConfig(hidden_size=3584, intermediate_size=18944, layers=28, heads=28, vit_layers=26)
    assert len(public_shapes(public)) == 1223


def test_keys_and_shapes(folder: Path) -> None:
    weights = load_file(folder / "ema.safetensors")
    assert {key: list(tensor.shape) for key, tensor in weights.items()} == public_shapes(TinyConfig())
    assert not weights["llm2vae.weight"].any()
    first = "language_model.model.layers.0.self_attn.q_proj"
    assert torch.equal(weights[f"{first}.weight"], weights[f"{first}_moe_gen.weight"])
    settings = json.loads((folder / "config.json").read_text())
    read_kl_vae(folder / "ae.safetensors", KLVAEConfig.from_dict(settings["vae_config"]))


@torch.no_grad()
def test_condition_keeps_the_picture(folder: Path) -> None:
    """A linear map must find a 2x2 thumbnail of every patch in what the language model gets of it."""
    config, path = BagelConfig.from_folder(folder), folder / "ema.safetensors"
    with torch.device("meta"):
        model = Bagel(config)
    fill_bagel(model, path, uniform(torch.float32, "cpu"))
    encoders = BagelEncoders(config)
    encoders.fill_vit(path, torch.float32, "cpu")
    count, draw = 400, torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 8, 8, generator=draw) * 2 - 1
    pixels = F.interpolate(small, scale_factor=7, mode="bilinear")
    patches = pixels.view(count, 3, 4, 14, 4, 14).permute(0, 2, 4, 3, 5, 1).reshape(-1, 588)
    ids = (torch.arange(4)[:, None] * TinyConfig().vit_side + torch.arange(4)).flatten().repeat(count)
    segments = Varlen.from_lengths([16] * count, [16] * count, causal=False)
    condition = model.connector(encoders.vit(patches, ids, segments, "sdpa"))
    wanted = F.avg_pool2d(pixels, 7).view(count, 3, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 12)
    features = torch.cat((condition, torch.ones(len(condition), 1)), dim=1).double()
    fit, judge = slice(0, 4800), slice(4800, None)
    solution = torch.linalg.lstsq(features[fit], wanted[fit].double(), driver="gelsd").solution
    error = (features[judge] @ solution - wanted[judge]).square().mean()
    assert error < 0.1 * wanted.var()


def test_one_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "vit_hidden_size": 24, "text_vocab": 300}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_tiny_checkpoint(tmp_path / name, seed=seed, **sizes)
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert first["ema.safetensors"] != (tmp_path / "c" / "ema.safetensors").read_bytes()
    assert first["ae.safetensors"] != (tmp_path / "c" / "ae.safetensors").read_bytes()


def test_vae_file_is_taken_over(folder: Path, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path, vae_file=folder / "ae.safetensors", seed=9)
    assert (tmp_path / "ae.safetensors").read_bytes() == (folder / "ae.safetensors").read_bytes()


OLD_FILES = {"vocab.json", "merges.txt", "tokenizer_config.json"}


@pytest.mark.parametrize("without", [OLD_FILES, {"tokenizer.json"}, set()], ids=["new file", "old files", "both"])
def test_the_tokenizer_loads_from_either_kind_of_file(folder: Path, tmp_path: Path, without: set[str]) -> None:
    for name in {"config.json", "tokenizer.json", *OLD_FILES} - without:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tokenizer = open_tokenizer(tmp_path)
    for field, marker in MARKERS.items():
        assert tokenizer.decode([getattr(tokenizer, field)]) == marker
        spelt = tokenizer.encode(f"a cup{marker} and")  # in a caption it stays text
        assert len(spelt) > 6 and max(spelt) < tokenizer.bos
        assert tokenizer.decode(spelt) == f"a cup{marker} and"
    text = "Describe the picture:  a naïve café, 1234 points\n 日本 😀"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.bos < tokenizer.end_of_image < TinyConfig().vocab_size
    assert len(tokenizer.encode("Describe the image in detail.")) < 15


def test_tokenizer_faults_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vocab\.json and merges\.txt missing"):
        open_tokenizer(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=r"has no <\|im_start\|>"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_tokenizer_is_named(folder: Path, tmp_path: Path, name: str, content: str, capfd) -> None:
    for file in {"tokenizer.json"} if name == "tokenizer.json" else OLD_FILES:
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(f"The tokenizer in {tmp_path} ")):
        open_tokenizer(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("llm_config.json", {"hidden_size": "big"}, "hidden_size is 'big', not a whole number"),
        ("llm_config.json", {"hidden_size": 1.5}, "hidden_size is 1.5, not a whole number"),
        ("llm_config.json", {"num_attention_heads": 0}, "num_attention_heads is 0; it must be at least 1"),
        ("llm_config.json", {"hidden_size": 65}, "hidden_size 65 is no multiple of num_attention_heads"),
        ("llm_config.json", {"num_key_value_heads": 3}, "is no multiple of num_key_value_heads 3"),
        ("llm_config.json", {"hidden_size": None}, "lacks hidden_size;"),
        ("llm_config.json", {"hidden_act": "gelu"}, "it describes another model"),
        ("vit_config.json", {"patch_size": -14}, "patch_size is -14; it must be at least 1"),
        ("vit_config.json", {"hidden_size": 65}, "hidden_size 65 is no multiple of num_attention_heads"),
    ],
)
def test_impossible_sizes_are_named(folder: Path, tmp_path: Path, file: str, change: dict, sentence: str) -> None:
    for name in ("llm_config.json", "vit_config.json"):
        values = json.loads((folder / name).read_text()) | (change if name == file else {})
        kept = {key: value for key, value in values.items() if value is not None}
        (tmp_path / name).write_text(json.dumps(kept))
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / file))}.*{re.escape(sentence)}"):
        BagelConfig.from_folder(tmp_path)
