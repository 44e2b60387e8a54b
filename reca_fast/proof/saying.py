"""How well a model says what a picture shows: what is left of its understanding after training."""

from dataclasses import replace
from pathlib import Path

import torch

from reca_fast.config import DataConfig, ModelConfig, TaskWeights
from reca_fast.data.samples import SampleBuilder
from reca_fast.data.sources import open_source
from reca_fast.evaluation.intervals import Estimate, mean
from reca_fast.memory import fill_to_draw
from reca_fast.models import open_model
from reca_fast.sample import I2T

from .measure import POOL
from .measuring import on_a_cpu


def caption_loss(checkpoint: Path, options: ModelConfig, data: DataConfig, *, count: int = 256) -> Estimate:
    """The cross-entropy of a token of the dense captions of validation pictures, on the CPU in fp32; each picture's
    mean counts alike.

    A caption may name two things in either order, and nobody can know which one it takes: even a model that
    understands everything has a loss.

    Args:
        checkpoint: a checkpoint folder of a model that says captions.
        options: of the model; path, precision and what computes it do not count.
        data: how pictures are shown to it.
        count: of pictures.

    Raises:
        UserError: it is no checkpoint folder, or its model says nothing.
    """
    model = open_model(replace(on_a_cpu(options, checkpoint), freeze_und=False))
    fill_to_draw(model, torch.device("cpu"))
    own = replace(data, source=f"toy:{POOL}", caption_name="dense", cache="", instructions="", serve="one", limit=0)
    own = replace(own, tasks=TaskWeights(reca=0.0, i2t=1.0), blur_sigma=0.0)
    inputs = model.inputs(own)
    source, builder = open_source(own), SampleBuilder(own, inputs)
    losses = []
    for index in range(count):
        record = source.read(index)
        plan = builder.plan(index, record.key, builder.size_of(record), record.caption, epoch=0)
        batch = inputs.collate([builder.build(record, plan)], torch.Generator().manual_seed(index))
        with torch.inference_mode():
            loss = model.loss_sums(model.encode(batch))[I2T]
        losses.append(loss.item() / batch.counts[I2T])
    return mean(losses)
