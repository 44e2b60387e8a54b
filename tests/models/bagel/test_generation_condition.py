"""Conditions that are the VAE's latents (model.condition=generation): the authors' clean pictures, at time 0."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.scatter_reference import Pack, ScatterBagel
from reca_fast.config import DataConfig, ModelConfig, ResizeConfig, SamplingConfig
from reca_fast.errors import UserError
from reca_fast.memory import fill_model
from reca_fast.models.bagel import BagelModel
from reca_fast.models.bagel.names import NETWORK_NAMES
from reca_fast.models.bagel.sampling import _target, _velocity, encode_prefixes
from reca_fast.models.bagel.tiny import TinyConfig
from reca_fast.randomness import draw_of_pack
from reca_fast.sample import I2T, RECA, T2I, Encoded, Sample, Text
from tests.oracles.bagel_mask import mask_rule

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = DataConfig(condition_resize=ResizeConfig(32, 16, 8), target_resize=ResizeConfig(48, 16, 8))
FULL, CAUSAL, NOISE = 1, 0, 2


def picture(width: int, height: int) -> Tensor:
    draw = torch.Generator().manual_seed(width * height)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=draw)


def samples_of(joint: bool) -> list[Sample]:
    """A pack with every kind: conditions of several sizes, with and without prompt, and targets without condition."""
    said = Text((5, 6, 7), ((0, 3),))
    samples = [
        Sample("a", (RECA,), picture(32, 16), picture(48, 32), Text((5, 6, 7))),
        Sample("b", (RECA,), picture(16, 24), picture(16, 16), None),
        Sample("c", (T2I,), None, picture(32, 32), Text((9,))),
    ]
    return [*samples, Sample("d", (I2T,), picture(32, 32), None, said)] if joint else samples


@pytest.fixture(scope="module", params=[True, False], ids=["frozen", "joint"])
def model(request, tiny_folder) -> BagelModel:
    options = ModelConfig(str(tiny_folder), precision="fp32", freeze_und=request.param, condition="generation")
    model = BagelModel.open(options)
    fill_model(model, torch.device("cpu"))
    torch.nn.init.normal_(model.module.get_parameter("llm2vae.weight"), std=0.1)
    return model


def encoded(model: BagelModel, samples: list[Sample], **data: Any):
    batch = model.inputs(replace(SIZES, **data)).collate(samples, draw_of_pack(1, 0, 0))
    return model.encode(batch)


def learned(model: BagelModel, batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses, and the gradient of every trained parameter."""
    model.module.zero_grad(set_to_none=True)
    sums = model.loss_sums(batch)
    torch.stack(list(sums.values())).sum().backward()
    return sums, {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


def reference(model: BagelModel, folder: Path, batch: Any, samples: list[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
    """The flow loss over all latents of the targets and its gradients, by the authors' layout with a dense mask."""
    sizes = TinyConfig(hidden_size=64, intermediate_size=96, layers=2, vit_hidden_size=48, text_vocab=300)
    config = {"llm_config": sizes.llm_config(), "vit_config": sizes.vit_config(), "bagel_config": sizes.glue_config()}
    dense: Any = ScatterBagel(config | {"vae_config": sizes.vae.to_dict()}, freeze_und=model.options.freeze_und)
    dense.load_state_dict(load_file(folder / "ema.safetensors"))
    dense.llm2vae.weight.data.copy_(model.module.llm2vae.weight.data)

    splits = [
        [
            *([(2 + s.condition.shape[0] * s.condition.shape[1] // 64, FULL)] if s.condition is not None else []),
            *([(2 + len(s.text.ids), CAUSAL)] if s.text is not None else []),
            *([(2 + s.target.shape[0] * s.target.shape[1] // 64, NOISE)] if s.target is not None else []),
        ]
        for s in samples
    ]
    rows, clean = torch.cat((batch.und_rows, batch.gen_rows)), batch.clean
    positions = torch.empty(len(rows), dtype=torch.int64)
    positions[rows] = torch.cat((batch.und_positions, batch.gen_positions))
    inputs = {
        "sample_lens": torch.tensor([sum(length for length, _ in sample) for sample in splits]),
        "packed_text_indexes": batch.und_rows[batch.text_rows],
        "packed_vit_token_indexes": torch.zeros(0, dtype=torch.int64),
        "packed_vae_token_indexes": batch.gen_rows,
        "packed_position_ids": positions,
    } | {f"attention_allowed.{number}": mask_rule([sample], [0]) for number, sample in enumerate(splits)}
    latents = torch.cat((batch.latents, batch.condition_latents))
    noise = torch.cat((batch.draws.noise, torch.zeros_like(batch.condition_latents)))
    times = torch.cat((batch.draws.timesteps[batch.target_index], torch.zeros(len(batch.condition_latents))))
    latents, noise, times = (x[clean.token_order] for x in (latents, noise, times))

    x = torch.zeros(len(rows), 64)
    x[inputs["packed_text_indexes"]] = dense.language_model["model"].embed_tokens(batch.text_ids)
    noisy = (1 - times[:, None]) * latents + times[:, None] * noise
    table = dense.latent_pos_embed.pos_embed[batch.latent_position_ids]
    x[batch.gen_rows] = dense.vae2llm(noisy) + dense.time_embedder(times) + table
    hidden = dense.decode(x, Pack(inputs, config["llm_config"], torch.float32, "fused"), {})
    velocity = dense.llm2vae(hidden[batch.gen_rows])
    loss = ((velocity - (noise - latents)) ** 2).mean(-1)[times > 0].sum()
    if batch.label_rows is not None:
        logits = dense.language_model["lm_head"](hidden[batch.und_rows[batch.label_rows]])
        loss = loss + torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
    loss.backward()
    return loss, {name: p.grad for name, p in dense.named_parameters() if p.grad is not None}


def test_losses_and_gradients_are_those_of_the_dense_mask(model, tiny_folder) -> None:
    samples = samples_of(joint=not model.options.freeze_und)
    batch = encoded(model, samples)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    batch = replace(batch, draws=batch.draws._replace(noise=noise))
    sums, gradients = learned(model, batch)
    wanted, of = reference(model, tiny_folder, batch, samples)
    assert sum(sums.values()).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert gradients.keys() == {name for name, p in model.module.named_parameters() if p.requires_grad}
    for name, gradient in gradients.items():
        other = of.get(NETWORK_NAMES.key(name))
        assert gradient.any() or other is None or not other.any(), name
        if other is not None:
            assert (gradient - other).abs().max() <= 1e-4 * max(other.abs().max().item(), 1e-3), name


def test_rounded_rows_and_a_cache_change_nothing(model, tiny_folder) -> None:
    samples = samples_of(joint=not model.options.freeze_und)
    plain, gradients = learned(model, encoded(model, samples))
    again, others = learned(model, encoded(model, samples, round_rows=32))
    torch.testing.assert_close(again, plain)
    torch.testing.assert_close(others, gradients)

    def cached(image: Tensor | None, encode) -> Encoded | None:
        return None if image is None else Encoded(image.shape[1], image.shape[0], encode(image))

    stored = [
        replace(
            *(s,),
            **{"condition": None, "encoded_condition": cached(s.condition, model.encode_condition)},
            **{"target": None, "encoded_target": cached(s.target, model.encode_target)},
        )
        for s in samples
    ]
    assert learned(model, encoded(model, stored))[0] == plain


@torch.no_grad()
def test_a_prefix_of_sampling_gives_the_velocities_of_training(model) -> None:
    sample = samples_of(joint=False)[0]
    batch = model.inputs(SIZES).collate([sample], draw_of_pack(1, 0, 0))
    assert batch.draws is not None
    means = tuple(torch.zeros_like(x) for x in batch.draws.posterior)
    batch = model.encode(replace(batch, draws=batch.draws._replace(posterior=means)))
    x = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(2))
    whole = model.module(batch, x, torch.tensor([0.7])).velocity
    prefix = [(sample.condition, sample.text.ids)]
    known = encode_prefixes(model.module, model.tokenizer, model.encode, prefix, as_latents=True)
    target = _target(model.module, model.tokenizer, batch.latent_shapes[0], known, 1)
    torch.testing.assert_close(_velocity(model.module, target, x, 0.7), whole)


def test_what_is_drawn_depends_on_the_condition_alone(model) -> None:
    samples = [replace(s, tasks=(), target=None) for s in samples_of(joint=False)[:2]]
    sampling = SamplingConfig(steps=2, guidance=2.0, image_guidance=1.5)
    drawn = model.sample(samples, [(16, 16)] * 2, sampling, [3, 3])
    (alone,) = model.sample(samples[1:], [(16, 16)], sampling, [3])
    assert torch.equal(drawn[1], alone) and not torch.equal(drawn[0], drawn[1])


def test_a_condition_is_planned_in_latent_tokens(model) -> None:
    plan = model.inputs(SIZES).plan([RECA], (32, 16), None)
    assert plan.num_tokens == 2 + 8 + 2 + (plan.target[0] // 8) * (plan.target[1] // 8)
    with pytest.raises(UserError, match=r"data\.condition_resize\.stride is 14; this model needs a multiple of 8"):
        model.inputs(DataConfig(target_resize=ResizeConfig(48, 16, 8)))
