"""TextToImage: one folder that samples, settings and their defaults, and errors for folders that do not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parti.base_pipeline import GeneratedImage
from parti.open_pipeline import find_pipeline
from parti.pipeline import TextToImage
from parti.sampling.generate import SamplingConfig
from parti.text.tokenizer import TEXT_TOKENIZER_FILE, TextTokenizer, TextTokenizerConfig
from tests.tiny import CAPTIONS, tiny_image_tokenizer, tiny_text_to_image
from vqgan.config.schema import ConfigError
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolderError
from vqgan.system.checksums import add_checksums

RECOMMENDED = SamplingConfig(guidance_scale=2.0, top_k=20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder."""
    tiny_text_to_image(RECOMMENDED).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def same(first: list[Image.Image], second: list[Image.Image]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def first_row_distance(one: GeneratedImage, other: GeneratedImage) -> float:
    """Between what two images show of their first row of codes."""
    first, second = (np.array(generated.image).astype(float)[:4] for generated in (one, other))
    return float(np.abs(first - second).mean())


def edit_config(folder: Path, **sections: object) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | sections), encoding="utf-8")


def test_a_saved_model_draws_the_same_images(folder: Path) -> None:
    model = tiny_text_to_image(RECOMMENDED)
    again = TextToImage.from_pretrained(folder)
    assert again.sampling == RECOMMENDED
    assert not again.generator.training
    first, second = (m(CAPTIONS[:3], num_images=2, seed=5) for m in (model, again))
    assert same(first.images, second.images)
    assert [(generated.prompt, generated.seed) for generated in second.generated] == [
        (c, s) for c in CAPTIONS[:3] for s in (5, 6)
    ]
    assert {image.size for image in second.images} == {(16, 16)}
    assert {image.mode for image in second.images} == {"RGB"}


def test_a_run_folder_stands_for_its_model(folder: Path) -> None:
    run = folder.parent / "run"
    shutil.copytree(folder, run / "model")
    assert same(
        TextToImage.from_pretrained(run)("a cat").images, TextToImage.from_pretrained(str(folder))("a cat").images
    )
    assert find_pipeline(run).sampling == RECOMMENDED


def test_images_do_not_depend_on_the_batch_size() -> None:
    model = tiny_text_to_image()
    together = model(CAPTIONS, num_images=2).images
    assert same(model(CAPTIONS, num_images=2, batch_size=3).images, together)
    assert same(model(CAPTIONS[2]).images, together[4:5])


def test_settings_that_are_not_given_are_the_models_own() -> None:
    model, plain = tiny_text_to_image(RECOMMENDED), tiny_text_to_image()
    recommended = model(CAPTIONS).images
    assert same(plain(CAPTIONS, guidance_scale=2.0, top_k=20).images, recommended)
    assert same(model(CAPTIONS, guidance_scale=1.0, top_k=0).images, plain(CAPTIONS).images)
    assert not same(plain(CAPTIONS).images, recommended)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_any_precision_draws_images(precision: str) -> None:
    model = tiny_text_to_image()
    images = model(CAPTIONS, num_images=2, precision=precision, seed=1).images
    assert [image.size for image in images] == [(16, 16)] * 16
    assert same(model(CAPTIONS, num_images=2, precision=precision, seed=1).images, images)
    assert same(tiny_text_to_image(SamplingConfig(precision=precision))(CAPTIONS, num_images=2, seed=1).images, images)
    # Rounding moves few draws: most codes, and so most images' beginnings, are those of fp32.
    exact = model(CAPTIONS, num_images=2, seed=1).images
    assert sum(np.array_equal(one, other) for one, other in zip(images, exact, strict=True)) >= 4


def test_guidance_schedules_are_settings_like_others(folder: Path) -> None:
    model = TextToImage.from_pretrained(folder)
    generated = {name: model(CAPTIONS, guidance_schedule=name).images for name in ("constant", "linear", "cosine")}
    assert same(generated["constant"], model(CAPTIONS).images)
    assert not same(generated["linear"], generated["constant"])
    assert not same(generated["linear"], generated["cosine"])
    plain = model(CAPTIONS, guidance_scale=1.0).images
    assert same(model(CAPTIONS, guidance_scale=1.0, guidance_schedule="linear").images, plain)
    scheduled = SamplingConfig(guidance_scale=2.0, guidance_schedule="linear", precision="bf16")
    tiny_text_to_image(scheduled).save_pretrained(folder)
    assert find_pipeline(folder).sampling == scheduled


def test_on_rows_shows_each_batch_as_far_as_it_is_generated() -> None:
    model = tiny_text_to_image()
    calls: list[tuple[list[GeneratedImage], int]] = []
    generated = model(
        CAPTIONS[:5], seed=2, batch_size=3, on_rows=lambda begun, rows: calls.append((begun(), rows))
    ).generated
    batches = [(size, rows) for size in (3, 2) for rows in (1, 2, 3, 4)]
    assert [(len(begun), rows) for begun, rows in calls] == batches
    for begun, rows in calls:
        final = generated[:3] if len(begun) == 3 else generated[3:]
        assert [(one.prompt, one.seed) for one in begun] == [(one.prompt, one.seed) for one in final]
        for one, other in zip(begun, final, strict=True):
            assert (np.array(one.image)[4 * rows :] == 128).all()
            assert not (np.array(one.image)[: 4 * rows] == 128).all()
            if rows == 4:
                assert np.array_equal(one.image, other.image)
    # The first row comes closer to what it will be as what surrounds it is drawn, and is its own from the beginning.
    distances = [sum(map(first_row_distance, begun, generated[:3])) for begun, _ in calls[:4]]
    assert distances[0] > distances[2] > distances[3] == 0
    assert distances[0] < sum(map(first_row_distance, calls[0][0], [*generated[1:3], generated[0]]))


def test_watching_changes_no_image() -> None:
    model = tiny_text_to_image()
    assert same(model(CAPTIONS, on_rows=lambda begun, _: begun()).images, model(CAPTIONS).images)


def test_a_folder_without_recommended_settings_gets_plain_ones(folder: Path) -> None:
    values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    del values["sampling"]
    (folder / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")
    add_checksums(folder, [CONFIG_FILE])
    assert find_pipeline(folder).sampling == TextToImage.from_pretrained(folder).sampling == SamplingConfig()


def test_wrong_calls_are_errors() -> None:
    model = tiny_text_to_image()
    with pytest.raises(ValueError, match="a prompt is blank"):
        model(["a cat", " "])
    with pytest.raises(ValueError, match="nothing to generate: 0 prompts"):
        model([])
    with pytest.raises(ValueError, match="num_images 0"):
        model("a cat", num_images=0)
    with pytest.raises(ValueError, match="batch_size is at least 1, received 0"):
        model("a cat", batch_size=0)
    with pytest.raises(ValueError, match=r"a seed lies in \[0, 2\*\*63\), received -1"):
        model("a cat", seed=-1)
    with pytest.raises(ConfigError, match=r"sampling settings: top_p: .* received 1\.5"):
        model("a cat", top_p=1.5)
    with pytest.raises(ConfigError, match="precision: 'fp8' is not a choice; did you mean fp32"):
        model("a cat", precision="fp8")
    with pytest.raises(ConfigError, match="sampling settings: guidance_schedule: 'up' is not a choice"):
        model("a cat", guidance_schedule="up")
    with pytest.raises(TypeError, match="unexpected keyword argument 'topk'"):
        model("a cat", topk=3)  # type: ignore[call-arg]


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    for read in (TextToImage.from_pretrained, find_pipeline):
        with pytest.raises(ModelFolderError, match=f"no model in .*nowhere: {CONFIG_FILE} is missing"):
            read(tmp_path / "nowhere")


def test_a_stage_1_folder_is_recognised(tmp_path: Path) -> None:
    tiny_image_tokenizer().save_pretrained(tmp_path)
    for read in (TextToImage.from_pretrained, find_pipeline):
        with pytest.raises(ModelFolderError, match="holds no text-to-image model; give the folder of a stage-2 run"):
            read(tmp_path)


@pytest.mark.parametrize("part", ["", "image_tokenizer"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(folder: Path, part: str, share: float) -> None:
    path = folder / part / WEIGHTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelFolderError, match=f"{WEIGHTS_FILE} is damaged or truncated"):
        TextToImage.from_pretrained(folder)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, TEXT_TOKENIZER_FILE, f"image_tokenizer/{CONFIG_FILE}"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=f"{Path(name).name} is missing"):
        TextToImage.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "null", '"model"', '{"model": 1, "tokens": {}}', "\xff"])
def test_a_config_that_is_no_config(folder: Path, text: str) -> None:
    (folder / CONFIG_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFolderError):
        TextToImage.from_pretrained(folder)


def test_a_config_of_another_kind_or_with_wrong_values(folder: Path) -> None:
    edit_config(folder, model={"kind": "diffusion"})
    with pytest.raises(ModelFolderError, match="of kind 'diffusion', holds no text-to-image model"):
        TextToImage.from_pretrained(folder)
    edit_config(folder, model={"kind": "encoder_decoder"}, sampling={"topk": 3})
    with pytest.raises(ConfigError, match="tiny: sampling: unknown key topk; did you mean top_k"):
        assert find_pipeline(folder).sampling


def test_weights_of_another_size(folder: Path) -> None:
    edit_config(folder, model={"kind": "encoder_decoder", "width": 64, "heads": 2, "mlp_width": 64})
    with pytest.raises(ModelFolderError, match=f"{WEIGHTS_FILE} does not fit its {CONFIG_FILE}"):
        TextToImage.from_pretrained(folder)


def test_a_tokenizer_of_another_run(folder: Path) -> None:
    TextTokenizer.train(CAPTIONS, TextTokenizerConfig(vocab_size=300, length=12)).save_pretrained(folder)
    with pytest.raises(ModelFolderError, match=r"text_length=8.*text_length=12.*mixes files of different runs"):
        TextToImage.from_pretrained(folder)
