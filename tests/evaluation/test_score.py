"""Scores of pictures in files are those of torchmetrics and scikit-image; what does not belong together is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from reca_fast.errors import UserError
from reca_fast.evaluation.pictures import pair, pictures_in
from reca_fast.evaluation.score import Judges, Subject, score_pictures


def picture(seed, height=32, width=24):
    """A smooth picture with some noise."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, height * width * 3).reshape(height, width, 3)
    return np.clip(ramp + random.normal(0, 20, ramp.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    def write(name, pixels):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return write


def test_psnr_and_ssim_are_those_of_scikit_image(files):
    drawn, reference = picture(1), picture(2)
    subject = Subject("x", files("drawn.png", drawn), files("reference.png", reference))
    found = score_pictures([subject], Judges()).each["x"]
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(reference, drawn, data_range=255), rel=1e-5)
    # scikit-image leaves the border out, where torchmetrics mirrors the picture.
    expected = structural_similarity(
        reference, drawn, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert found["ssim"] == pytest.approx(expected, abs=0.02) and 0.2 < found["ssim"] < 0.98


def test_equal_pictures_have_the_highest_scores(files):
    path = files("a.png", picture(1))
    assert score_pictures([Subject("x", path, path)], Judges()).each["x"] == {"psnr": 100, "ssim": pytest.approx(1)}


def test_no_score_depends_on_what_is_scored_with_it(files):
    subjects = [
        Subject(str(n), files(f"d{n}.png", picture(n, 30 + n)), files(f"r{n}.png", picture(9 + n, 30 + n)))
        for n in range(5)
    ]
    together = score_pictures(subjects, Judges(), batch=3).each
    assert together == {s.name: score_pictures([s], Judges()).each[s.name] for s in subjects}
    steps = []
    score_pictures(subjects, Judges(), batch=2, progress=lambda *step: steps.append(step))
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_judges_see_what_they_need(files):
    """A picture with a prompt alone has a CLIP score alone, one with a reference alone has the others."""
    both = Subject("both", files("a.png", picture(1)), files("b.png", picture(2)), "a cat")
    prompt, reference = Subject("prompt", both.file, None, "a dog"), Subject("reference", both.file, both.reference)
    seen = []

    def clip(pictures, prompts):
        seen.append(("clip", len(pictures), *prompts))
        return [float(len(text)) for text in prompts]

    def dino(pictures, references):
        seen.append(("dino", len(pictures), len(references)))
        return [0.5] * len(pictures)

    scores = score_pictures([both, prompt, reference], Judges(clip, lambda a, b: 0.25, dino))
    assert seen == [("dino", 2, 2), ("clip", 2, "a cat", "a dog")]
    assert scores.each["prompt"] == {"clip_score": 5.0}
    assert scores.each["reference"].keys() == {"psnr", "ssim", "lpips", "dino_similarity"}
    means = scores.means()
    assert means["clip_score"].count == 2 and means["lpips"].value == 0.25 and means["psnr"].count == 2


def test_sizes_that_differ_are_refused_unless_asked_for(files):
    subject = Subject("x", files("a.png", picture(1)), files("b.png", picture(1, 64, 48)))
    with pytest.raises(UserError, match=r"a\.png has 24x32 pixels and its reference .*b\.png 48x64; give --resize"):
        score_pictures([subject], Judges())
    found = score_pictures([subject], Judges(), resized=True).each["x"]
    resized = np.asarray(Image.open(subject.reference).resize((24, 32), Image.Resampling.BICUBIC))
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(resized, picture(1)), rel=1e-5)


def test_pictures_that_cannot_be_scored_are_named(files, tmp_path):
    small = files("small.png", picture(1, 8, 8))
    with pytest.raises(UserError, match=r"small\.png: SSIM needs pictures of 11 pixels"):
        score_pictures([Subject("x", small, small)], Judges())
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(UserError, match=r"bad\.png cannot be read as a picture"):
        score_pictures([Subject("x", tmp_path / "bad.png", small)], Judges())


def test_pictures_are_found_by_name_in_nested_folders(files, tmp_path):
    for name in ("00000/samples/00001.png", "00000/grid.png", "a.jpg", "task/en/key.png", "task/en/key_SRCIMG.png"):
        files(f"drawn/{name}", picture(0))
    (tmp_path / "drawn" / "manifest.json").write_text("{}")
    (tmp_path / "drawn" / ".half.png").write_bytes(b"")
    found = pictures_in(tmp_path / "drawn")
    assert list(found) == ["a", "00000/samples/00001", "task/en/key"]
    assert pair(found, ["a", "b"], (tmp_path, tmp_path)) == ["a"]
    files("drawn/a.png", picture(0))
    with pytest.raises(UserError, match="have one name"):
        pictures_in(tmp_path / "drawn")
    with pytest.raises(UserError, match=r"No picture has its reference: .* holds a and the like, .* b;"):
        pair(["a"], ["b"], (tmp_path, tmp_path))
    for folder, said in ((tmp_path / "none", "is no folder"), (tmp_path / "empty", "holds no picture")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=said):
            pictures_in(folder)


def test_ssim_is_that_of_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure

    from reca_fast.evaluation.similarity import ssim_of

    a, b = (torch.from_numpy(picture(seed)) for seed in (1, 2))
    ours, theirs = (x.permute(2, 0, 1)[None].float() / 255 for x in (a, b))
    expected = structural_similarity_index_measure(ours, theirs, data_range=1.0)
    assert ssim_of(a, b) == pytest.approx(float(expected), abs=1e-5)
