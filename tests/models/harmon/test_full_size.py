"""The public checkpoints at their true sizes, on the meta device: names, shapes and numbers of parameters."""

import pytest

from reca_fast.config import ModelConfig
from reca_fast.models.harmon import HarmonModel
from reca_fast.models.harmon.config import PUBLISHED, HarmonConfig
from reca_fast.models.harmon.names import HEAD, NETWORK_NAMES
from reca_fast.models.parts.kl_vae import KLVAE
from reca_fast.models.parts.kl_vae_names import kl_vae_names

SIZES = {
    "Harmon-0.5B": {"H": 896, "F": 4864, "kv": 128, "layers": 24, "D": 768, "depth": 12, "W": 1024, "blocks": 6},
    "Harmon-1.5B": {"H": 1536, "F": 8960, "kv": 256, "layers": 28, "D": 1280, "depth": 20, "W": 1536, "blocks": 12},
}
KEYS = {"Harmon-0.5B": 663, "Harmon-1.5B": 951}
TRAINED = {"Harmon-0.5B": 704_942_880, "Harmon-1.5B": 2_494_774_048}
PARTS = {
    "Harmon-0.5B": (136_134_656, 357_898_112, 85_054_464, 85_054_464, 35_749_920, 2_985_344),
    "Harmon-1.5B": (233_373_696, 1_310_340_608, 393_548_800, 393_548_800, 151_206_944, 8_656_640),
}
DECAYED = {
    "Harmon-0.5B": ((277, 668_872_192), (385, 36_070_688)),
    "Harmon-1.5B": ((369, 2_342_740_480), (581, 152_033_568)),
}


def table(H, F, kv, layers, D, depth, W, blocks) -> dict[str, tuple[int, ...]]:
    """Key -> shape, as the authors' files have them."""
    shapes: dict[str, tuple[int, ...]] = {"llm.model.embed_tokens.weight": (151936, H), HEAD: (151936, H)}

    def linear(name: str, rows: int, columns: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for i in range(layers):
        layer = f"llm.model.layers.{i}"
        linear(f"{layer}.self_attn.q_proj", H, H)
        linear(f"{layer}.self_attn.k_proj", kv, H)
        linear(f"{layer}.self_attn.v_proj", kv, H)
        linear(f"{layer}.self_attn.o_proj", H, H, bias=False)
        linear(f"{layer}.mlp.gate_proj", F, H, bias=False)
        linear(f"{layer}.mlp.up_proj", F, H, bias=False)
        linear(f"{layer}.mlp.down_proj", H, F, bias=False)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (H,)
    shapes["llm.model.norm.weight"] = (H,)
    shapes |= {"mar.fake_latent": (1, D), "mar.class_emb.weight": (1000, D), "mar.mask_token": (1, 1, D)}
    linear("mar.z_proj", D, 16)
    linear("mar.decoder_embed", D, D)
    for name in ("z_proj_ln", "encoder_norm", "decoder_norm"):
        norm(f"mar.{name}", D)
    shapes |= {f"mar.{part}_pos_embed_learned": (1, 320, D) for part in ("encoder", "decoder")}
    shapes["mar.diffusion_pos_embed_learned"] = (1, 256, D)
    for part in ("encoder", "decoder"):
        for i in range(depth):
            block = f"mar.{part}_blocks.{i}"
            norm(f"{block}.norm1", D)
            norm(f"{block}.norm2", D)
            linear(f"{block}.attn.qkv", 3 * D, D)
            linear(f"{block}.attn.proj", D, D)
            linear(f"{block}.mlp.fc1", 4 * D, D)
            linear(f"{block}.mlp.fc2", D, 4 * D)
    net = "mar.diffloss.net"
    linear(f"{net}.time_embed.mlp.0", W, 256)
    linear(f"{net}.time_embed.mlp.2", W, W)
    linear(f"{net}.cond_embed", W, D)
    linear(f"{net}.input_proj", W, 16)
    for i in range(blocks):
        norm(f"{net}.res_blocks.{i}.in_ln", W)
        linear(f"{net}.res_blocks.{i}.mlp.0", W, W)
        linear(f"{net}.res_blocks.{i}.mlp.2", W, W)
        linear(f"{net}.res_blocks.{i}.adaLN_modulation.1", 3 * W, W)
    linear(f"{net}.final_layer.adaLN_modulation.1", 2 * W, W)
    linear(f"{net}.final_layer.linear", 32, W)
    linear("proj_in.0", H, D)
    linear("proj_in.2", H, H)
    linear("proj_out.0", H, H)
    linear("proj_out.2", D, H)
    return shapes


@pytest.fixture(params=SIZES, scope="module")
def published(request: pytest.FixtureRequest) -> tuple[str, HarmonModel]:
    model = HarmonModel.published(request.param, ModelConfig(freeze_und=False))
    assert model is not None
    return request.param, model


def test_names_and_shapes_are_those_of_the_public_files(published) -> None:
    name, model = published
    ours = {NETWORK_NAMES.key(n): tuple(p.shape) for n, p in model.module.named_parameters()}
    public = table(**SIZES[name])
    assert ours | {HEAD: public[HEAD]} == public and len(public) == KEYS[name]
    assert not dict(model.module.named_buffers())


def test_numbers_of_parameters(published) -> None:
    name, model = published
    module = model.module

    def count(*parts) -> int:
        return sum(p.numel() for part in parts for p in part.parameters())

    llm, mar = module.llm, module.mar
    assert (
        count(llm.embed_tokens),
        count(llm.layers, llm.norm),
        count(mar.encoder_blocks),
        count(mar.decoder_blocks),
        count(module.denoiser),
        count(module.proj_in, module.proj_out),
    ) == PARTS[name]
    assert count(module) == TRAINED[name]
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
    assert frozen == ["mar.class_emb.weight"]  # which nothing reads


def test_weight_decay_acts_where_the_authors_have_it(published) -> None:
    name, model = published
    sizes = [(model.decays(n), p.numel()) for n, p in model.module.named_parameters()]
    found = [[size for decays, size in sizes if decays is wanted] for wanted in (True, False)]
    assert tuple((len(part), sum(part)) for part in found) == DECAYED[name]


def test_a_file_without_a_config_tells_its_own_sizes(published) -> None:
    name, _ = published
    assert HarmonConfig.from_dict({}, "nothing", table(**SIZES[name])) == PUBLISHED[name]


def test_the_vae_has_312_tensors_under_names_of_its_own(published) -> None:
    import torch

    _, model = published
    with torch.device("meta"):
        vae = KLVAE(model.config.vae)
    keys = kl_vae_names(model.config.vae).keys(vae.state_dict())
    assert len(keys) == 312
    assert {"encoder.down.4.attn.1.q.weight", "decoder.up.3.block.0.nin_shortcut.bias"} <= set(keys)
    halves = (("encoder.", "quant_conv."), ("decoder.", "post_quant_conv."))
    counted = [sum(p.numel() for n, p in vae.named_parameters() if n.startswith(parts)) for parts in halves]
    assert counted == [28_266_816, 38_189_203]
