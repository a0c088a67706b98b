"""A text-to-image model on the Hub: what is pushed draws the same images again by its name, through the tool too."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import parti
from parti import TextToImage
from parti.sampling.generate import SamplingConfig
from tests.fake_hub import FakeHub
from tests.tiny import tiny_text_to_image
from vqgan.hub.model_folder import ModelFolderError

main = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "sample.py"))["main"]


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Its models, and an empty folder to work in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return FakeHub(tmp_path, monkeypatch)


def test_what_is_pushed_draws_the_same_images_by_its_name(fake_hub: FakeHub) -> None:
    model = tiny_text_to_image(SamplingConfig(guidance_scale=2.0, top_k=7), seed=1)
    address = model.push_to_hub("me/shapes", private=True, token="secret", commit_message="first")
    assert address == "https://huggingface.co/me/shapes"
    assert (fake_hub.commits, fake_hub.private) == ([("me/shapes", "first")], {"me/shapes": True})

    loaded = TextToImage.from_pretrained("me/shapes")
    assert loaded.sampling == model.sampling
    expected = model("a red cat", num_images=2, seed=5).images
    generated = loaded("a red cat", num_images=2, seed=5).images
    for ours, theirs in zip(expected, generated, strict=True):
        assert np.array_equal(ours, theirs)
    assert fake_hub.fetched("me/shapes") == [
        "SHA256SUMS",
        "config.json",
        "image_tokenizer/SHA256SUMS",
        "image_tokenizer/config.json",
        "image_tokenizer/model.safetensors",
        "model.safetensors",
        "text_tokenizer.json",
    ]

    words = ["--model", "me/shapes", "--prompt", "a red cat", "--n", "2", "--seed", "5", "--device", "cpu"]
    assert main([*words, "--out", "out"]) == 0
    for number, image in enumerate(expected):
        with Image.open(f"out/0000-0{number}.png") as written:
            assert np.array_equal(written, image)
    assert fake_hub.asked == ["me/shapes@main"]


@pytest.mark.filterwarnings("ignore:the model reads 8 tokens")
def test_the_card_tells_the_models_own_metrics_and_its_example_runs(fake_hub: FakeHub) -> None:
    model = tiny_text_to_image(SamplingConfig(guidance_scale=2.0, top_k=7))
    model.push_to_hub("shapes")
    _, head, body = (fake_hub.models / "me/shapes/README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "parti-toolkit",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "autoregressive", "encoder_decoder"],
    }
    count = sum(weight.numel() for weight in model.generator.parameters())
    for words in (f"| Parameters | {count:,}, ", "guidance_scale 2.0", "top_k 7", "16x16, RGB", "4x4, each one of 32"):
        assert words in body
    scope: dict[str, list[Image.Image]] = {}
    exec(body.split("```python\n")[1].split("```")[0], scope)
    assert [image.size for image in scope["images"]] == [(16, 16)] * 4


def test_a_name_that_nobody_has_is_one_line(fake_hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelFolderError, match="'mine/parti-shapes' is no folder here; and the Hugging Face Hub"):
        TextToImage.from_pretrained("mine/parti-shapes")
    assert main(["--model", "mine/parti-shapes", "--prompt", "a", "--out", "out"]) == 2
    assert capsys.readouterr().err.startswith("error: 'mine/parti-shapes' is no folder here; and the Hugging Face Hub")
    assert fake_hub.asked == ["mine/parti-shapes@main"] * 2
    assert main(["--model", "runs/parti-shapes", "--prompt", "a", "--out", "out"]) == 2
    assert capsys.readouterr().err == (
        "error: 'runs/parti-shapes' is no folder here; for the Hugging Face Hub's model of that name give "
        "runs/parti-shapes@main\n"
    )
    assert len(fake_hub.asked) == 2


@pytest.mark.parametrize("unknown", ["revision", "device", "torch_dtype"])
def test_unknown_arguments_are_errors(unknown: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{unknown}'"):
        TextToImage.from_pretrained("me/shapes", **{unknown: "x"})
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{unknown}'"):
        tiny_text_to_image().push_to_hub("me/shapes", **{unknown: "x"})
    with pytest.raises(TypeError):
        tiny_text_to_image().push_to_hub("me/shapes", True)


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="module 'parti' has no attribute 'TextToPicture'"):
        _ = parti.TextToPicture
