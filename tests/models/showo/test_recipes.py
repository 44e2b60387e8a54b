"""The recipes hold the settings that the authors trained with."""

import pytest

from bench.plans import settings
from reca_fast.config import RunConfig
from reca_fast.models.showo import ShowoModel


def planned(config: RunConfig) -> ShowoModel:
    model = ShowoModel.published(config.model.name, config.model)
    assert model is not None
    return model


@pytest.mark.parametrize(("recipe", "side", "clip"), [("showo", 512, True), ("showo-vq", 256, False)])
def test_a_recipe_has_the_settings_of_the_authors(recipe, side, clip) -> None:
    config = settings(recipe)
    optim, data = config.optim, config.data
    assert (optim.lr, tuple(optim.betas), optim.eps, optim.weight_decay) == (5e-7, (0.9, 0.999), 1e-8, 0.01)
    assert (optim.warmup_steps, optim.max_grad_norm, optim.schedule, config.steps) == (1000, 0, "constant", 5000)
    assert (data.condition_resize.max_size, data.target_resize.max_size, data.packs_per_step) == (side, 512, 5)
    assert {data.condition_resize.fit, data.target_resize.fit} == {"squash"} and data.text_dropout == 0
    assert (config.loss.reca, config.loss.i2t, config.loss.t2i) == (1, 1, 0)
    model = planned(config)
    assert model.clip_sees == clip and model.config.num_vq_tokens == 1024
    plan = model.inputs(data).plan(["reca"], (1024, 768), None)
    assert plan.condition == (side, side) and plan.target == (512, 512)


def test_codes_of_conditions_may_be_copied_and_what_clip_sees_may_not() -> None:
    warned = [planned(settings(name)) for name in ("showo", "showo-vq")]
    assert [model.copying_below is None for model in warned] == [True, False]
