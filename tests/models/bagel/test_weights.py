"""Checkpoints are read strictly and memory-mapped; the model's parameters are the public model's, name by name."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reca_fast.config import ModelConfig
from reca_fast.errors import UserError
from reca_fast.memory import training_place
from reca_fast.models.bagel import BagelModel
from reca_fast.models.bagel.config import BAGEL_7B_MOT, BagelConfig, GlueConfig, LLMConfig
from reca_fast.models.bagel.encoders import BagelEncoders
from reca_fast.models.bagel.names import NETWORK_NAMES, TABLES, VIT_NAMES
from reca_fast.models.bagel.network import Bagel
from reca_fast.models.bagel.weights import fill_bagel
from reca_fast.models.files import check_fit, open_weights, uniform
from reca_fast.models.parts.siglip_config import SiglipConfig
from tests.models.bagel.networks import filled, on_meta

pytestmark = pytest.mark.usefixtures("one_thread")


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Replace, add or (None) remove tensors of ema.safetensors; `__` stands for a dot."""
    weights = load_file(folder / "ema.safetensors") | {key.replace("__", "."): x for key, x in changes.items()}
    save_file({key: x for key, x in weights.items() if x is not None}, folder / "ema.safetensors")


# What filling gives


class Casts(TorchDispatchMode):
    """Where every cast happens."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and "copy" in func.__name__ and out.dtype != args[0].dtype:
            self.devices.append(args[0].device.type)
        return out


def test_weights_are_cast_on_the_device(copy) -> None:
    """Moved in the file's dtype first: a thread of the host casts far slower, and fp32 is twice the bytes to move."""
    rewrite(copy, **{key: x.bfloat16() for key, x in load_file(copy / "ema.safetensors").items()})
    model = on_meta(BagelConfig.from_folder(copy))
    with Casts() as casts:
        # The meta device stands for any that is not the host.
        fill_bagel(model, copy / "ema.safetensors", training_place(torch.bfloat16, "meta"))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(casts.devices) >= len(trained) and set(casts.devices) == {"meta"}
    assert {p.dtype for p in trained} == {torch.float32}


def test_every_parameter_is_the_file_s_tensor(tiny_folder) -> None:
    stored = load_file(tiny_folder / "ema.safetensors")
    model, encoders = filled(tiny_folder, freeze_und=False), BagelEncoders(BagelConfig.from_folder(tiny_folder))
    encoders.fill_vit(tiny_folder / "ema.safetensors", torch.float32, "cpu")
    found = set(TABLES)
    for part, names in ((model, NETWORK_NAMES), (encoders.vit, VIT_NAMES)):
        for key, name in names.keys(dict(part.named_parameters())).items():
            assert torch.equal(part.get_parameter(name), stored[key]), key
            found.add(key)
    assert found == stored.keys()
    for table in TABLES:  # computed, not read
        torch.testing.assert_close(model.get_buffer(table.removesuffix(".pos_embed")), stored[table])


def test_trained_in_one_dtype_frozen_in_another(tiny_folder) -> None:
    for name, parameter in filled(tiny_folder, frozen=torch.bfloat16).named_parameters():
        is_gen = ".gen." in name or name.startswith(("norm_gen.", "time_embedder.", "vae2llm.", "llm2vae."))
        assert parameter.requires_grad == is_gen
        as_stored = is_gen or name == "embed_tokens.weight"  # the file's fp32: rows are cast when they are read
        assert parameter.dtype is (torch.float32 if as_stored else torch.bfloat16)


UNREAD = {
    *("language_model.model.norm.weight", "language_model.lm_head.weight"),
    "language_model.model.layers.1.self_attn.o_proj.weight",
    "language_model.model.layers.1.post_attention_layernorm.weight",
    *(f"language_model.model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
}


def test_what_nothing_reads_is_checked_and_not_held(copy) -> None:
    """With a frozen understanding side: the head, and the last layer of that side after its keys and values."""
    held = {NETWORK_NAMES.key(name) for name, _ in filled(copy).named_parameters()}
    assert {NETWORK_NAMES.key(name) for name, _ in filled(copy, freeze_und=False).named_parameters()} - held == UNREAD
    rewrite(copy, language_model__lm_head__weight=None)
    with pytest.raises(UserError, match=r"1 missing \(language_model\.lm_head\.weight\)"):
        filled(copy)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_a_frozen_token_embedding_stays_in_the_file_and_gives_its_rows(tiny_folder) -> None:
    table, whole = (filled(tiny_folder, freeze_und=frozen).embed_tokens for frozen in (True, False))
    assert "ema.safetensors" in mapped_file(table.weight)
    assert "ema.safetensors" not in mapped_file(whole.weight)
    ids = torch.tensor([7, 0, 7])
    assert torch.equal(table(ids, torch.device("cpu"), torch.bfloat16), whole(ids).bfloat16())


def test_position_tables_are_computed_not_read(copy) -> None:
    before = filled(copy)
    rewrite(copy, latent_pos_embed__pos_embed=torch.zeros(256, 64), vit_pos_embed__pos_embed=None)
    after = filled(copy)
    assert torch.equal(after.latent_pos_embed, before.latent_pos_embed) and after.latent_pos_embed.any()
    assert torch.equal(after.vit_pos_embed, before.vit_pos_embed)


# Position tables: absent is said, of another size is refused


def test_missing_position_tables_are_said(copy, reca_fast) -> None:
    """The authors' app reads them from the file, so `verify` refuses; nothing here needs them."""
    rewrite(copy, latent_pos_embed__pos_embed=None, vit_pos_embed__pos_embed=None)
    said = reca_fast("verify", copy).sentence
    assert "ema.safetensors lacks latent_pos_embed.pos_embed and vit_pos_embed.pos_embed" in said
    assert "what `reca-fast export` writes holds them" in said
    model = BagelModel.open(ModelConfig(path=str(copy), precision="fp32"))
    assert "lacks latent_pos_embed.pos_embed and vit_pos_embed.pos_embed (computed here" in model.says_weights()


@pytest.mark.parametrize(
    ("table", "shape", "remedy"),
    [
        ("latent_pos_embed", (64, 64), "set max_latent_size of bagel_config in config.json to 8"),
        ("vit_pos_embed", (81, 64), "set vit_max_num_patch_per_side of bagel_config in config.json to 9"),
        ("vit_pos_embed", (63, 64), "take another file"),
        ("latent_pos_embed", (256, 63), "take another file"),
        ("latent_pos_embed", (3,), "take another file"),
    ],
)
def test_position_tables_of_another_size(table, shape, remedy, copy, reca_fast) -> None:
    rewrite(copy, **{f"{table}__pos_embed": torch.zeros(shape)})
    assert remedy in reca_fast("verify", copy).sentence
    with pytest.raises(UserError, match=rf"{table}\.pos_embed {re.escape(str(list(shape)))}, the configuration"):
        filled(copy)
    if "set " in remedy:  # which works
        config = json.loads((copy / "config.json").read_text())
        setting, side = re.findall(r"set (\w+) .* to (\d+)", remedy)[0]
        config["bagel_config"][setting] = int(side)
        (copy / "config.json").write_text(json.dumps(config))
        assert reca_fast("verify", copy).code == 0


# Strictness: every fault is named


KEY = "language_model__model__layers__1__mlp_moe_gen__up_proj__weight"

FAULTS = {
    "missing": ({KEY: None}, rf"1 missing \({KEY.replace('__', '.')}\)"),
    "unexpected": ({"lm_head__bias": torch.zeros(3)}, r"1 unexpected \(lm_head\.bias\)"),
    "misshapen": (
        {KEY: torch.zeros(96, 63)},
        rf"1 misshapen \({KEY.replace('__', '.')} \[96, 63\] instead of \[96, 64\]\)",
    ),
    "all three": (
        {KEY: torch.zeros(96), "vae2llm__bias": None, "llm2vae__bias": None, "extra": torch.zeros(1)},
        r"2 missing \(llm2vae\.bias, vae2llm\.bias\); 1 unexpected \(extra\); 1 misshapen",
    ),
    "many": (
        {f"extra__{n}": torch.zeros(1) for n in range(9)},
        r"9 unexpected \(extra\.0, extra\.1, extra\.2, \.\.\.\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_keys_must_fit(fault, copy) -> None:
    changes, message = FAULTS[fault]
    rewrite(copy, **changes)
    for read in (filled, BagelModel.check):
        with pytest.raises(UserError, match=message):
            read(copy)


# Part by part


@pytest.mark.parametrize(("stranger", "names"), [("lm_head.bias", "network"), ("vit_model.bias", "vit")])
def test_each_part_refuses_what_is_its_own(stranger, names, copy) -> None:
    rewrite(copy, **{stranger.replace(".", "__"): torch.zeros(3)})
    config = BagelConfig.from_folder(copy)
    parts = {
        "network": (on_meta(config, freeze_und=False), NETWORK_NAMES),
        "vit": (BagelEncoders(config).vit, VIT_NAMES),
    }
    with open_weights(copy / "ema.safetensors") as weights:
        with pytest.raises(UserError, match=rf"1 unexpected \({re.escape(stranger)}\)"):
            check_fit(weights, parts.pop(names))
        check_fit(weights, *parts.values())  # the other one's


# Memory


def private_bytes() -> int:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


def mapped_file(tensor: Tensor) -> str:
    """The file whose mapping holds this tensor's memory, or an empty string."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(side, 16) for side in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_frozen_weights_stay_in_the_file(tmp_path) -> None:
    """Filling a model with 70 MB takes next to no memory of its own: all processes of a host share the page cache."""
    config = BagelConfig(
        LLMConfig(64, 64, 1, 4, 2, vocab_size=131072), SiglipConfig(32, 32, 2, 2, 28), GlueConfig(2, 2, 2)
    )
    model = on_meta(config, freeze_und=False).requires_grad_(False)
    path = tmp_path / "ema.safetensors"
    save_file({NETWORK_NAMES.key(n): torch.full(p.shape, 0.5) for n, p in model.named_parameters()}, path)
    assert path.stat().st_size >= 60_000_000

    before = private_bytes()
    fill_bagel(model, path, uniform(torch.float32, "cpu"))
    total = sum(p.sum().item() for p in model.parameters())  # every page has been read
    assert private_bytes() - before < path.stat().st_size / 10
    assert total == sum(p.numel() for p in model.parameters()) / 2
    assert {mapped_file(p) for p in model.parameters()} == {str(path)}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_trained_weights_never_share_the_file(tiny_folder) -> None:
    model = filled(tiny_folder)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = (tiny_folder / "ema.safetensors").read_bytes()
    assert not any("ema.safetensors" in mapped_file(p) for p in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(1)
    assert (tiny_folder / "ema.safetensors").read_bytes() == before


# The public model


def count(model: Bagel, part: str = "", trained: bool = False) -> int:
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if re.match(part, name) and (p.requires_grad or not trained))


def test_public_model_has_the_public_numbers() -> None:
    """Numbers of parameters by part, and what of them moves, as counted on the authors' model."""
    model, vit = on_meta(BAGEL_7B_MOT, freeze_und=False), BagelEncoders(BAGEL_7B_MOT).vit
    assert count(model, r"layers\.\d+\.gen\.") == count(model, r"layers\.\d+\.und\.") == 6_525_625_344
    assert count(model, r"layers\.7\.gen\.") == 233_058_048
    parts = {"time_embedder": 13_769_728, "vae2llm": 232_960, "llm2vae": 229_440, "norm_gen": 3584, "norm": 3584}
    parts |= {"embed_tokens": 544_997_376, "lm_head": 544_997_376, "connector": 16_980_992}
    for part, numbers in parts.items():
        assert count(model, rf"{part}\.") == numbers, part
    tables = model.latent_pos_embed.numel(), model.vit_pos_embed.numel()
    assert tables == (14_680_064, 17_561_600)
    assert count(model) + sum(p.numel() for p in vit.parameters()) + sum(tables) == 14_607_260_128
    assert sum(p.numel() for p in vit.parameters()) == 402_552_736
    assert count(model, trained=True) == count(model)
    frozen = on_meta(BAGEL_7B_MOT)
    assert count(frozen, trained=True) == 6_539_861_056
    assert count(model) - count(frozen) == 761_535_488  # 1.5 GB in bf16 that nothing reads
    assert not any(p.requires_grad for p in vit.parameters())


def test_public_model_has_the_public_keys() -> None:
    """1223 tensors with the two tables, every name once, and some of them letter by letter."""
    parts = ((on_meta(BAGEL_7B_MOT, freeze_und=False), NETWORK_NAMES), (BagelEncoders(BAGEL_7B_MOT).vit, VIT_NAMES))
    shapes = {names.key(name): list(p.shape) for part, names in parts for name, p in part.named_parameters()}
    assert len(shapes) == 1223 - len(TABLES)
    layer = "language_model.model.layers.27"
    tower = "vit_model.vision_model"
    assert (
        shapes
        | {
            "language_model.model.embed_tokens.weight": [152064, 3584],
            "language_model.lm_head.weight": [152064, 3584],
            "language_model.model.norm.weight": [3584],
            "language_model.model.norm_moe_gen.weight": [3584],
            f"{layer}.self_attn.q_proj_moe_gen.bias": [3584],
            f"{layer}.self_attn.k_proj.weight": [512, 3584],
            f"{layer}.self_attn.o_proj_moe_gen.weight": [3584, 3584],
            f"{layer}.self_attn.k_norm_moe_gen.weight": [128],
            f"{layer}.mlp.down_proj.weight": [3584, 18944],
            f"{layer}.mlp_moe_gen.gate_proj.weight": [18944, 3584],
            f"{layer}.input_layernorm_moe_gen.weight": [3584],
            f"{layer}.post_attention_layernorm.weight": [3584],
            "vae2llm.weight": [3584, 64],
            "llm2vae.weight": [64, 3584],
            "time_embedder.mlp.0.weight": [3584, 256],
            "time_embedder.mlp.2.bias": [3584],
            "connector.fc1.weight": [3584, 1152],
            f"{tower}.embeddings.patch_embedding.weight": [1152, 588],
            f"{tower}.embeddings.position_embedding.weight": [4900, 1152],
            f"{tower}.encoder.layers.25.self_attn.out_proj.weight": [1152, 1152],
            f"{tower}.encoder.layers.0.layer_norm2.bias": [1152],
            f"{tower}.encoder.layers.0.mlp.fc1.weight": [4304, 1152],
            f"{tower}.post_layernorm.weight": [1152],
        }
        == shapes
    )
    assert f"{layer.replace('27', '28')}.mlp.up_proj.weight" not in shapes
