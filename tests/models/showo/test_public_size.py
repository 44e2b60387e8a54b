"""The published checkpoints at their true sizes, without any file: names, shapes, tokens and arithmetic."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from reca_fast.config import DataConfig, ModelConfig, ResizeConfig
from reca_fast.kernels import assume_gpu
from reca_fast.models.files import uniform
from reca_fast.models.parts.clip_vision import clip_names
from reca_fast.models.parts.clip_vision_config import CLIP_VIT_L_336
from reca_fast.models.showo import ShowoModel
from reca_fast.models.showo.names import NETWORK_NAMES
from reca_fast.plan.work import WorkLog
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, T2I, Sample, Text

pytestmark = pytest.mark.usefixtures("one_thread")

SQUARE = ResizeConfig(512, 512, 16)
LAYER = {
    "input_layernorm.{weight,bias}": [2048],
    "self_attn.{q_proj,k_proj,v_proj,dense}.weight": [2048, 2048],
    "self_attn.{q_proj,k_proj,v_proj,dense}.bias": [2048],
    "self_attn.{q_layernorm,k_layernorm}.{weight,bias}": [64],
    "mlp.fc1.weight": [8192, 2048],
    "mlp.fc1.bias": [8192],
    "mlp.fc2.weight": [2048, 8192],
    "mlp.fc2.bias": [2048],
}
NETWORK = {
    "showo.model.embed_tokens.weight": [58498, 2048],
    "showo.model.final_layernorm.{weight,bias}": [2048],
    "showo.lm_head.weight": [58498, 2048],
    "showo.lm_head.bias": [58498],
} | {f"showo.model.layers.{i}.{key}": shape for i in range(24) for key, shape in LAYER.items()}
PROJECTOR = {
    "mm_projector.0.weight": [2048, 1024],
    "mm_projector.2.weight": [2048, 2048],
    "mm_projector.{0,2}.bias": [2048],
}
"""The public files' tensors, {a,b} standing for one of each."""


def expanded(table: dict[str, list[int]]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for pattern, shape in table.items():
        keys = [pattern]
        while any("{" in key for key in keys):
            parts = [(key.partition("{")[0], *key.partition("{")[2].partition("}")[::2]) for key in keys]
            keys = [before + word + after for before, words, after in parts for word in words.split(",")]
        out |= dict.fromkeys(keys, shape)
    return out


def published(name: str) -> ShowoModel:
    model = ShowoModel.published(name, ModelConfig(freeze_und=False))
    assert model is not None
    return model


@pytest.mark.parametrize(
    ("name", "table", "tensors", "numbers"),
    [
        ("Show-o-256", NETWORK, 437, 1_448_176_770),
        ("Show-o-512", NETWORK, 437, 1_448_176_770),
        ("Show-o-CLIP-256", NETWORK | PROJECTOR, 441, 1_454_472_322),
        ("Show-o-CLIP-512", NETWORK | PROJECTOR, 441, 1_454_472_322),
    ],
)
def test_names_and_shapes_are_those_of_the_public_files(name, table, tensors, numbers) -> None:
    module = published(name).module
    got = {NETWORK_NAMES.key(key): list(p.shape) for key, p in module.named_parameters()}
    assert got == expanded(table)
    assert (len(got), sum(map(math.prod, got.values()))) == (tensors, numbers)
    assert published(name).config.num_vq_tokens == (1024 if name.endswith("512") else 256)


def test_the_tower_is_read_up_to_the_layer_before_the_last() -> None:
    names = clip_names(CLIP_VIT_L_336)
    assert CLIP_VIT_L_336.layers == 23 and CLIP_VIT_L_336.num_patches == 576
    assert names.has("vision_model.encoder.layers.22.mlp.fc1.weight")
    assert not names.has("vision_model.encoder.layers.23.mlp.fc1.weight")


def pixels(size: tuple[int, int] | None) -> torch.Tensor | None:
    return None if size is None else torch.zeros(size[1], size[0], 3, dtype=torch.uint8)


def micro_step(model: ShowoModel, words: int = 250) -> list[Sample]:
    """Two reconstructions and two conversations of `words` tokens, as the authors' micro step has them."""
    inputs = model.inputs(DataConfig(condition_resize=SQUARE, target_resize=SQUARE))
    prompt, talk = Text(tuple(range(21))), Text(tuple(range(words)), ((100, words),))
    samples: list[Sample] = []
    for task, text in ((RECA, prompt), (RECA, prompt), (I2T, talk), (I2T, talk)):
        plan = inputs.plan([task], (512, 512), text)
        samples.append(Sample(f"{len(samples)}", (task,), pixels(plan.condition), pixels(plan.target), text))
    return samples


def test_a_reconstruction_has_no_row_of_padding() -> None:
    """Of 1730 rows in the authors' code, 128 - 36 are padding and one is a closing mark that nothing sees."""
    model = published("Show-o-CLIP-512")
    inputs = model.inputs(DataConfig(condition_resize=SQUARE, target_resize=SQUARE))
    prompt = Text(tuple(range(21)))
    worded = len(model.tokenizer.reconstruct(prompt.ids))
    plan = inputs.plan([RECA], (640, 480), prompt)
    assert plan.num_tokens == 2 + 576 + 1 + (worded + 2) + 1 + 24 * 32
    assert inputs.plan([T2I], (512, 512), prompt).num_tokens == 1 + 23 + 1026
    assert inputs.plan([I2T], (512, 512), prompt).num_tokens == 1 + 28 + 1 + 576 + 1 + 21


@pytest.mark.slow
def test_a_micro_step_executes_little_more_than_half_of_the_authors_arithmetic() -> None:
    """79.8 TFLOP are 46 at most: no row of weight 0, no padding, a head for rows that are learnt alone."""
    model = published("Show-o-CLIP-512")
    samples = micro_step(model)
    inputs = model.inputs(DataConfig(condition_resize=SQUARE, target_resize=SQUARE))
    batch = inputs.collate(samples, draw_of_pack(0, 0, 0))
    with FakeTensorMode(allow_non_fake_inputs=True), assume_gpu(), torch.device("cpu"):
        model.fill_empty(uniform(torch.float32, "cpu"))
        log = WorkLog(lambda tensor: False)
        with log:
            sum(model.loss_sums(model.encode(batch)).values()).backward()
    executed, useful = log.work.flops / 1e12, model.flops(batch) / 1e12
    assert 0.98 * useful + 4 < executed < 46
