"""CLIP score and DINO similarity are the cosines of what transformers computes; nothing is downloaded or run."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from reca_fast.errors import UserError
from reca_fast.evaluation.judges import ClipScore, DinoSimilarity
from reca_fast.evaluation.preprocess import read_preprocessing
from tests.evaluation.judge_folders import write_clip, write_dino, write_preprocessing

CPU = torch.device("cpu")
PROMPTS = ["a red cat", "a dog on a table"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("judges") / "clip")


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return write_dino(tmp_path_factory.mktemp("judges") / "dino")


def pictures(*sizes):
    noise = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=noise) for size in sizes]


def theirs(folder, picture):
    """What transformers' own preprocessing makes of a picture."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor.from_pretrained(folder)
    return processor(images=Image.fromarray(picture.numpy()), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("size", [(16, 16), (40, 64), (63, 29)])
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True},
        {"size": {"shortest_edge": 18}, "crop_size": 14, "do_center_crop": True},
        {"size": {"height": 12, "width": 20}, "do_center_crop": False, "resample": 2},
    ],
)
def test_pictures_are_prepared_as_transformers_does(tmp_path, size, settings):
    write_preprocessing(tmp_path, **settings)
    (picture,) = pictures(size)
    expected = theirs(tmp_path, picture)[0]
    found = read_preprocessing(tmp_path)(picture)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.02  # of a range of 3.8: one step of 255 where rounding differs


def test_newer_releases_say_it_in_another_file(tmp_path):
    write_preprocessing(tmp_path, size={"height": 8, "width": 8})
    older = read_preprocessing(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert read_preprocessing(tmp_path) == older


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": {"longest_edge": 16}}, "neither a number nor"),
        ({"size": 8, "do_normalize": False}, "a step is switched off"),
        ({"size": 8, "resample": 17}, "none of Pillow's methods"),
        ({"size": 8, "image_std": [0, 1, 1]}, "above 0"),
        ({"size": "large"}, "size"),
    ],
)
def test_preprocessing_that_is_not_understood_is_refused(tmp_path, settings, said):
    write_preprocessing(tmp_path, **settings)
    with pytest.raises(UserError, match=said):
        read_preprocessing(tmp_path)


def test_clip_score_is_the_cosine_of_transformers_features(clip):
    from transformers import AutoTokenizer, CLIPModel

    drawn, prepare = pictures((16, 16), (40, 24)), read_preprocessing(clip)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    expected = torch.zeros(2, 2)
    with torch.no_grad():
        for i, picture in enumerate(drawn):
            for k, prompt in enumerate(PROMPTS):
                out = model(**tokenizer(prompt, return_tensors="pt"), pixel_values=prepare(picture)[None])
                expected[i, k] = 100 * F.cosine_similarity(out.image_embeds, out.text_embeds)
    judge = ClipScore(clip, CPU)
    for order in (PROMPTS, PROMPTS[::-1]):
        wanted = [max(expected[i, PROMPTS.index(prompt)].item(), 0) for i, prompt in enumerate(order)]
        assert judge(drawn, order) == pytest.approx(wanted, abs=1e-3)
    assert expected.max() > 1 and expected.std() > 0.1


def test_no_score_depends_on_its_neighbours(clip):
    judge, drawn = ClipScore(clip, CPU), pictures((16, 16), (16, 16), (20, 30))
    prompts = [*PROMPTS, "a"]
    together = judge(drawn, prompts)
    alone = [judge([picture], [prompt])[0] for picture, prompt in zip(drawn, prompts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-3)


def test_prompts_that_are_too_long_are_cut_and_counted(clip):
    judge = ClipScore(clip, CPU)
    judge(pictures((16, 16), (16, 16)), ["a cat", "a red cat on a red table"])
    assert judge.shortened == 1


def test_dino_similarity_is_one_for_equal_pictures(dino):
    judge = DinoSimilarity(dino, CPU)
    first, second = pictures((20, 20), (20, 20))
    same, other = judge([first, first], [first, second])
    assert same == pytest.approx(1, abs=1e-5) and other < 0.999


def test_what_is_no_judge_is_refused(tmp_path, clip, dino):
    with pytest.raises(UserError, match=r"--clip .*there is no such folder"):
        ClipScore(tmp_path / "openai", CPU)
    with pytest.raises(UserError, match=r"--clip .*type 'dinov2', not clip"):
        ClipScore(dino, CPU)
    with pytest.raises(UserError, match=r"--dino .*type 'clip', not dinov2"):
        DinoSimilarity(clip, CPU)
    lacking = shutil.copytree(dino, tmp_path / "lacking")
    (lacking / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"--dino .*cannot be loaded"):
        DinoSimilarity(lacking, CPU)


def test_a_judge_that_is_not_whole_is_refused(tmp_path, dino):
    """transformers would draw missing weights at random."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(dino, tmp_path / "dino")
    tensors = load_file(folder / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks layernorm\.weight"):
        DinoSimilarity(folder, CPU)


def test_code_of_a_folder_does_not_run(tmp_path, dino):
    folder = shutil.copytree(dino, tmp_path / "dino")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Evil", "AutoConfig": "modeling.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    DinoSimilarity(folder, CPU)
    assert not (tmp_path / "ran").exists()
