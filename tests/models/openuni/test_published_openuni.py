"""The published models at their real sizes, on the meta device and on fake tensors: names, shapes and arithmetic.

The tables are facts of the public files and of the authors' code.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import DataConfig, ModelConfig, ResizeConfig
from reca_fast.kernels import assume_gpu
from reca_fast.memory.place import training_place
from reca_fast.models.files import EmptyWeights, fill
from reca_fast.models.openuni import OpenUniModel
from reca_fast.models.openuni.batch import OpenUniBatch
from reca_fast.models.openuni.config import PUBLISHED, OpenUniConfig
from reca_fast.models.openuni.dcae import DECODER_NAMES, ENCODER_NAMES, empty_half
from reca_fast.models.openuni.names import NETWORK_NAMES, VIT_NAMES
from reca_fast.models.openuni.tokenizer import PUBLISHED_TOKENS
from reca_fast.plan.work import WorkLog
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import RECA, Sample, Text

NAMES = ("OpenUni-B-512", "OpenUni-L-512", "OpenUni-L-1024")


@cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Key in the authors' layout -> shape, of every tensor that is loaded."""
    model = OpenUniModel.published(name, ModelConfig())
    assert model is not None
    vae = model.config.vae
    parts = [(model.module, NETWORK_NAMES), (model.encoders.vit, VIT_NAMES)]
    parts += [(empty_half(vae, "encoder"), ENCODER_NAMES), (empty_half(vae, "decoder"), DECODER_NAMES)]
    return {t.key(n): t.stored_shape(n, p.shape) for module, t in parts for n, p in module.named_parameters()}


def numbers(name: str, *prefixes: str) -> tuple[int, int]:
    """Tensors and numbers below these prefixes."""
    found = [torch.Size(shape).numel() for key, shape in shapes(name).items() if key.startswith(prefixes)]
    return len(found), sum(found)


COUNTS = {
    "lmm.vision_model.": [(340, 304_012_288)] * 3,
    "lmm.mlp1.": [(6, 4_482_816), (6, 8_662_016), (6, 8_662_016)],
    "lmm.language_model.model.embed_tokens.": [(1, 135_899_904), (1, 232_971_264), (1, 232_971_264)],
    "lmm.language_model.": [(290, 493_798_016), (338, 1_543_311_872), (338, 1_543_311_872)],
    "connector.": [(96, 52_364_544), (96, 221_910_528), (96, 221_910_528)],
    "projector.": [(2, 2_066_688), (2, 3_541_248), (2, 3_541_248)],
    "meta_queries": [(1, 229_376), (1, 393_216), (1, 393_216)],
    "transformer.": [(548, 591_747_872), (396, 1_604_462_752), (476, 1_604_641_952)],
    "vae.encoder.": [(150, 153_027_104)] * 3,
    "vae.": [(375, 312_250_275)] * 3,
}
"""Prefix of keys -> tensors and numbers in each of the published models."""


@pytest.mark.parametrize("prefix", [prefix for prefix in COUNTS if prefix != "vae.encoder."])
def test_every_part_has_its_tensors_and_numbers(prefix) -> None:
    assert [numbers(name, prefix) for name in NAMES] == COUNTS[prefix]
    assert numbers(NAMES[0], "vae.encoder.")[1] == COUNTS["vae.encoder."][0][1]


@pytest.mark.parametrize(("number", "trained"), list(enumerate((646_408_480, 1_830_307_744, 1_830_486_944))))
def test_as_much_is_trained_as_in_the_authors_second_stage(number, trained) -> None:
    model = OpenUniModel.published(NAMES[number], ModelConfig())
    assert model is not None
    assert sum(p.numel() for p in model.module.parameters() if p.requires_grad) == trained
    first = sum(numbers(NAMES[number], prefix)[0] for prefix in ("meta_queries", "connector.", "projector."))
    assert first == 99
    blocks = {"OpenUni-B-512": 24 + 6 + 28}.get(NAMES[number], 28 + 6 + 20)
    assert len(model.blocks()) == blocks


SHAPES = {
    "meta_queries": (256, 1536),
    "projector.weight": (2304, 1536),
    "connector.layers.5.self_attn.out_proj.bias": (1536,),
    "connector.layers.0.mlp.fc1.weight": (8960, 1536),
    "lmm.vision_model.embeddings.class_embedding": (1, 1, 1024),
    "lmm.vision_model.embeddings.position_embedding": (1, 1025, 1024),
    "lmm.vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    "lmm.vision_model.encoder.layers.23.attn.qkv.weight": (3072, 1024),
    "lmm.vision_model.encoder.layers.0.attn.proj.bias": (1024,),
    "lmm.vision_model.encoder.layers.0.mlp.fc1.weight": (4096, 1024),
    "lmm.vision_model.encoder.layers.0.norm2.bias": (1024,),
    "lmm.vision_model.encoder.layers.0.ls1": (1024,),
    "lmm.mlp1.0.weight": (4096,),
    "lmm.mlp1.1.weight": (1536, 4096),
    "lmm.mlp1.3.weight": (1536, 1536),
    "lmm.language_model.model.embed_tokens.weight": (151_674, 1536),
    "lmm.language_model.model.norm.weight": (1536,),
    "lmm.language_model.model.layers.27.self_attn.q_proj.bias": (1536,),
    "lmm.language_model.model.layers.0.self_attn.k_proj.weight": (256, 1536),
    "lmm.language_model.model.layers.0.mlp.down_proj.weight": (1536, 8960),
    "lmm.language_model.model.layers.0.post_attention_layernorm.weight": (1536,),
    "transformer.patch_embed.proj.weight": (2240, 32, 1, 1),
    "transformer.caption_projection.linear_1.weight": (2240, 2304),
    "transformer.caption_projection.linear_2.bias": (2240,),
    "transformer.caption_norm.weight": (2240,),
    "transformer.time_embed.emb.timestep_embedder.linear_1.weight": (2240, 256),
    "transformer.time_embed.emb.timestep_embedder.linear_2.weight": (2240, 2240),
    "transformer.time_embed.linear.weight": (6 * 2240, 2240),
    "transformer.transformer_blocks.19.scale_shift_table": (6, 2240),
    "transformer.transformer_blocks.0.attn1.to_q.weight": (2240, 2240),
    "transformer.transformer_blocks.0.attn1.to_out.0.bias": (2240,),
    "transformer.transformer_blocks.0.attn2.to_k.bias": (2240,),
    "transformer.transformer_blocks.0.attn2.norm_k.weight": (2240,),
    "transformer.transformer_blocks.0.attn1.norm_q.weight": (2240,),
    "transformer.transformer_blocks.0.ff.conv_inverted.weight": (11_200, 2240, 1, 1),
    "transformer.transformer_blocks.0.ff.conv_depth.weight": (11_200, 1, 3, 3),
    "transformer.transformer_blocks.0.ff.conv_point.weight": (2240, 5600, 1, 1),
    "transformer.scale_shift_table": (2, 2240),
    "transformer.proj_out.weight": (32, 2240),
    "vae.encoder.conv_out.weight": (32, 1024, 3, 3),
}
"""Of OpenUni-L-1024."""


def test_tensors_have_the_names_and_shapes_of_the_public_files() -> None:
    found = shapes("OpenUni-L-1024")
    assert {key: found.get(key) for key in SHAPES} == SHAPES
    absent = ("attn1.to_q.bias", "conv_point.bias", "o_proj.bias")
    assert not [key for key in found if key.endswith(absent)]
    assert not [key for key in shapes("OpenUni-L-512") if ".norm_q." in key]


SQUARE = ResizeConfig(512, 512, 32, fit="crop")
DATA = DataConfig(condition_resize=SQUARE, target_resize=SQUARE, tokens_per_pack=1024)


def executed(model: OpenUniModel, batch: OpenUniBatch) -> tuple[float, float]:
    """TFLOP of the encoders and of the network in a step, as `reca-fast plan` counts them."""
    with FakeTensorMode(allow_non_fake_inputs=True), assume_gpu():
        place = training_place(model.dtype, torch.device("cpu"))
        if batch.targets:
            model.fill_empty(place)
        else:
            fill(model.module, EmptyWeights(model.module), place)
        with WorkLog(lambda tensor: False) as log:
            encoded = model.encode(batch)
            encoding = log.work.flops
            sum(model.loss_sums(encoded).values()).backward()
    return encoding / 1e12, (log.work.flops - encoding) / 1e12


@pytest.mark.slow
def test_a_step_executes_less_than_the_authors() -> None:
    """Their 7.83 TFLOP for a picture at OpenUni-L-512. Layers are alike: two of a kind say what all of them take."""
    config, options = PUBLISHED["OpenUni-L-512"], ModelConfig()
    inputs, text = OpenUniModel(config, options, PUBLISHED_TOKENS).inputs(DATA), Text(tuple(range(21)))
    assert inputs.plan([RECA], (512, 512), text)[:2] == (None, (512, 512))
    sample = Sample("", (RECA,), None, torch.zeros(512, 512, 3, dtype=torch.uint8), text)
    batch = inputs.collate([sample], draw_of_pack(0, 0, 0))
    encoded = replace(batch, conditions=(), targets=(), features=torch.zeros(256, 1536), latents=torch.zeros(256, 32))

    parts = {"llm": "num_hidden_layers", "connector": "num_hidden_layers", "sana": "num_layers"}
    depth = {part: getattr(getattr(config, part), layers) for part, layers in parts.items()}
    one: OpenUniConfig = replace(config, **{p: replace(getattr(config, p), **{parts[p]: 1}) for p in parts})
    encoders, first = executed(OpenUniModel(one, options, PUBLISHED_TOKENS), batch)
    total = first
    for part, layers in parts.items():
        two = replace(one, **{part: replace(getattr(config, part), **{layers: 2})})
        _, more = executed(OpenUniModel(two, options, PUBLISHED_TOKENS), encoded)
        total += (depth[part] - 1) * (more - first)
    assert 4.9 < total <= 5.1  # from a cache
    assert 6.9 < total + encoders <= 7.1
