"""PartiPrompts: an even choice, nothing drawn twice, means by category and challenge, sheets; made-up prompts."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from parti.base_pipeline import GeneratedImage, Requests, SampleOptions
from parti.evaluation import partiprompts as module
from parti.evaluation.clip_score import Backbone
from parti.evaluation.generator import GeneratorEvaluationConfig, measure_generator
from parti.evaluation.model_under_test import ModelUnderTest
from parti.evaluation.partiprompts import (
    PartiPrompt,
    generate_partiprompts,
    images_of,
    partiprompts_metrics,
    read_partiprompts,
    score_partiprompts,
    spread,
    write_sheets,
)
from parti.pipeline import TextToImage
from parti.reranker.scorer import Scorer
from parti.sampling.generate import SamplingConfig
from tests.tiny import tiny_text_to_image
from vqgan.config.schema import ConfigError

ROWS = [
    ("a red cat", "Animals", "Basic", ""),
    ('a sign that says "hat" in blue', "Artifacts", "Writing & Symbols", 'a "quoted" note'),
    ("a blue dog", "Animals", "Simple Detail", ""),
    ("a jug", "Food & Beverage", "Basic", ""),
    ("a red hat on a blue cat", "Animals", "Imagination", ""),
    ("a red jug", "Artifacts", "Basic", ""),
]
WEIGHTS = {"weights_sha256": "a", "image_tokenizer_sha256": "b"}
PLAIN = SamplingConfig()
PLAIN_OPTIONS = SampleOptions()


def write_tsv(folder: Path, rows: Sequence[Sequence[str]] = ROWS) -> Path:
    path = folder / "prompts.tsv"
    lines = ["\t".join(row) for row in [("Prompt", "Category", "Challenge", "Note"), *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


class Counting(TextToImage):
    """Knows how often each prompt was drawn; stops after `patience` images, as a user who presses Ctrl-C."""

    def __init__(self, patience: int = 10**6) -> None:
        tiny = tiny_text_to_image()
        super().__init__(tiny.generator, tiny.text_tokenizer, tiny.image_tokenizer)
        self.generated: list[tuple[str, int]] = []
        self.patience = patience

    def stream(
        self,
        requests: Requests,
        options: SampleOptions = PLAIN_OPTIONS,
        *,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Iterator[GeneratedImage]:
        for one in super().stream(requests, options, batch_size=batch_size, progress=progress):
            if len(self.generated) == self.patience:
                raise KeyboardInterrupt
            self.generated.append((one.prompt, one.seed))
            yield one


class Brightness(Scorer):
    """The mean level of an image."""

    def __init__(self) -> None:
        """Without any network."""

    def score_images(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        assert len(images) == len(prompts)
        return torch.tensor([np.array(image).mean() / 255 for image in images])


def model_under_test(
    model: Counting, sampling: SamplingConfig = PLAIN, weights: Mapping[str, str] = WEIGHTS
) -> ModelUnderTest:
    return ModelUnderTest(model, sampling, about={}, identity=weights)


BRIGHT = Backbone("bright", Brightness())


@pytest.fixture
def rows(tmp_path: Path) -> list[PartiPrompt]:
    return read_partiprompts(write_tsv(tmp_path))


def test_quotation_marks_are_text(rows: list[PartiPrompt]) -> None:
    assert [(row.prompt, row.category, row.challenge) for row in rows] == [row[:3] for row in ROWS]
    assert [row.number for row in rows] == list(range(6))


def test_a_file_that_is_something_else_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.tsv' cannot be read: No such file"):
        read_partiprompts(tmp_path / "nowhere.tsv")
    other = tmp_path / "other.tsv"
    for text, complaint in (
        ("Prompt,Category\na,b\n", "has no column Prompt and Category and Challenge; its first line has: Prompt,Cat"),
        ("", "has no column Prompt"),
        ("Prompt\tCategory\tChallenge\n", "holds no prompt"),
        ("Prompt\tCategory\tChallenge\na cat\tAnimals\n", "row 0 lacks one of Prompt, Category, Challenge: 'a cat"),
    ):
        other.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=complaint):
            read_partiprompts(other)
    other.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        read_partiprompts(other)


def test_a_limit_takes_evenly_from_every_category() -> None:
    sizes = {"Abstract": 2, "Animals": 30, "Vehicles": 9}
    prompts = [
        PartiPrompt(number, f"{category} {number}", category, "Basic")
        for number, category in enumerate(name for name, size in sizes.items() for _ in range(size))
    ]
    for limit, counts in ((3, (1, 1, 1)), (9, (2, 4, 3)), (23, (2, 12, 9)), (41, (2, 30, 9)), (0, (2, 30, 9))):
        chosen = spread(prompts, limit)
        assert len(set(chosen)) == len(chosen)
        assert [prompt.number for prompt in chosen] == sorted(prompt.number for prompt in chosen)
        assert Counter(prompt.category for prompt in chosen) == dict(zip(sizes, counts, strict=True)), limit
    animals = [prompt.number for prompt in spread(prompts, 9) if prompt.category == "Animals"]
    assert min(animals) < 12, "from all over the category"
    assert max(animals) > 22, "not its first ones"
    for smaller, larger in ((3, 9), (9, 10), (10, 23)):
        assert set(spread(prompts, smaller)) < set(spread(prompts, larger)), "what was drawn before serves again"


def test_names_and_seeds_stand_on_the_row_alone(rows: list[PartiPrompt]) -> None:
    few, many = images_of(rows[3:4], 6, 1, 10), images_of(rows, 6, 3, 10)
    assert few == [image for image in many if image.file == "0003-00.png"]
    assert len({image.seed for image in many}) == len({image.file for image in many}) == 18
    assert min(image.seed for image in many) == 10


@pytest.mark.filterwarnings("ignore:the model reads 8 tokens")
def test_a_second_call_draws_nothing_twice(rows: list[PartiPrompt], tmp_path: Path) -> None:
    model, out = Counting(), tmp_path / "out"
    some = images_of(rows[1:4], 6, 1, 0)
    generate_partiprompts(model_under_test(model), some, out, 2)
    assert model.generated == [(image.source.prompt, image.seed) for image in some]
    first = {image.file: (out / image.file).read_bytes() for image in some}

    everything = images_of(rows, 6, 2, 0)
    records = generate_partiprompts(model_under_test(model), everything, out, 4)
    assert sorted(model.generated) == sorted((image.source.prompt, image.seed) for image in everything)
    assert all((out / name).read_bytes() == content for name, content in first.items())
    assert json.loads((out / "samples.json").read_text(encoding="utf-8")) == [records[name] for name in sorted(records)]
    record = records["0001-01.png"]
    assert (record["prompt"], record["category"], record["seed"]) == (ROWS[1][0], "Artifacts", 7)
    assert record["settings"] == PLAIN.model_dump()
    with Image.open(out / "0001-01.png") as image:
        (by_itself,) = tiny_text_to_image()(ROWS[1][0], seed=7).images
        assert image.tobytes() == by_itself.tobytes()

    for record in records.values():
        record["settings"].pop("top_k", None)  # as if that came with a later version
    (out / "samples.json").write_text(json.dumps(list(records.values())), encoding="utf-8")
    generate_partiprompts(model_under_test(model), everything, out, 4)
    assert len(model.generated) == 12


@pytest.mark.parametrize("change", ["sampling", "weights", "file", "records"])
def test_what_is_not_the_same_is_generated_again(change: str, rows: list[PartiPrompt], tmp_path: Path) -> None:
    model, images = Counting(), images_of(rows, 6, 1, 0)
    generate_partiprompts(model_under_test(model), images, tmp_path, 6)
    sampling, weights, again = PLAIN, WEIGHTS, 6
    match change:
        case "sampling":
            sampling = SamplingConfig(top_k=3)
        case "weights":
            weights = WEIGHTS | {"weights_sha256": "c"}
        case "file":
            (tmp_path / "0002-00.png").unlink()
            again = 1
        case _:
            (tmp_path / "samples.json").write_text("[1, 2", encoding="utf-8")
    generate_partiprompts(model_under_test(model, sampling, weights), images, tmp_path, 6)
    assert len(model.generated) == 6 + again


def test_an_interrupted_call_goes_on_where_it_stopped(rows: list[PartiPrompt], tmp_path: Path) -> None:
    images = images_of(rows, 6, 1, 0)
    generate_partiprompts(model_under_test(Counting(), SamplingConfig(top_k=2), WEIGHTS), images, tmp_path, 2)
    stopped = Counting(patience=3)
    with pytest.raises(KeyboardInterrupt):
        generate_partiprompts(model_under_test(stopped), images, tmp_path, 2)
    # One batch of two is complete. Nothing claims any longer to hold an image of the earlier settings.
    records = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert [record["file"] for record in records] == ["0000-00.png", "0001-00.png"]
    second = Counting()
    generate_partiprompts(model_under_test(second), images, tmp_path, 2)
    assert [prompt for prompt, _ in second.generated] == [row[0] for row in ROWS[2:]]


def test_means_by_category_and_challenge_are_those_by_hand(rows: list[PartiPrompt], tmp_path: Path) -> None:
    images = images_of(rows, 6, 2, 0)
    records: dict[str, dict[str, Any]] = {}
    for number, image in enumerate(images):
        Image.new("L", (4, 4), 10 * number).save(tmp_path / image.file)
        records[image.file] = {"file": image.file}
    lacking = Backbone("far", None, "fetch it")
    scores = score_partiprompts(images, [BRIGHT, lacking], tmp_path, records, 5)
    assert scores["bright"] == pytest.approx([1000 * number / 255 for number in range(12)], abs=1e-3)
    shared = {"x": 1, "generated": {"cut_prompts": 0}}
    metrics = {metric.name: metric for metric in partiprompts_metrics(images, [BRIGHT, lacking], scores, shared)}
    assert metrics.pop("partiprompts_images").value == 12

    def mean(chosen: Callable[[Sequence[str]], bool]) -> float:
        found = [1000 * (2 * row + j) / 255 for row, values in enumerate(ROWS) if chosen(values) for j in range(2)]
        return sum(found) / len(found)

    assert metrics["partiprompts_clip_score(bright)"].value == pytest.approx(mean(lambda _: True), abs=1e-3)
    assert metrics["partiprompts_clip_score(bright)"].details["images"] == 12
    assert "a proxy" in metrics["partiprompts_clip_score(bright)"].warning
    for column, name in ((1, "category"), (2, "challenge")):
        for value in {row[column] for row in ROWS}:
            metric = metrics.pop(f"partiprompts_{name}[{value}]_clip_score(bright)")
            assert metric.value == pytest.approx(mean(lambda row, c=column, v=value: row[c] == v), abs=1e-3)
            assert metric.details["images"] == 2 * sum(row[column] == value for row in ROWS)
            assert (metric.details[name], metric.details["x"]) == (value, 1)
    assert list(metrics) == ["partiprompts_clip_score(bright)", "partiprompts_clip_score(far)"]
    assert metrics["partiprompts_clip_score(far)"].missing == "fetch it"
    written = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert written[1]["clip_score"] == {"bright": pytest.approx(1000 / 255, abs=1e-3)}


def test_sheets_by_category_and_all_on_one(
    rows: list[PartiPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(rows, 6, 1, 0)
    for number, image in enumerate(images):
        Image.new("RGB", (64, 64), (40 * number, 0, 255)).save(tmp_path / image.file)
    names = [path.name for path in write_sheets(images, tmp_path)]
    assert names == ["sheet-animals.png", "sheet-artifacts.png", "sheet-food-beverage.png", "sheet.png"]
    with Image.open(tmp_path / "sheet-animals.png") as sheet:
        found = {color for _, color in sheet.getcolors(2**16) or [] if color[1:] == (0, 255)}
    assert found == {(0, 0, 255), (80, 0, 255), (160, 0, 255)}, "rows 0, 2 and 4"

    monkeypatch.setattr(module, "_SHEET_IMAGES", 2)
    monkeypatch.setattr(module, "_SHEET_COLUMNS", 2)
    names = [path.name for path in write_sheets(images, tmp_path)]
    assert names == [
        "sheet-animals-1.png",
        "sheet-animals-2.png",
        "sheet-artifacts.png",
        "sheet-food-beverage.png",
    ]


def no_answer(*_: object, **__: object) -> None:
    raise OSError("no network")


def test_without_clip_the_images_still_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_answer)
    tiny_text_to_image(SamplingConfig(top_p=0.9)).save_pretrained(tmp_path / "model")
    config = GeneratorEvaluationConfig(
        model=str(tmp_path / "model"),
        out=str(tmp_path / "out" / "metrics.json"),
        sampling=SamplingConfig(temperature=0.5),
        partiprompts=str(write_tsv(tmp_path)),
        partiprompts_limit=3,
        clip=("nobody/no-such-clip",),
        device="cpu",
    )
    report = measure_generator(config)
    count, metric = report.metrics
    assert (count.name, count.value) == ("partiprompts_images", 3)
    assert count.warning == "1 prompts are longer than the model reads; it did not see their ends"
    assert metric.name == "partiprompts_clip_score(nobody/no-such-clip)"
    assert metric.value is None
    assert "hf download nobody/no-such-clip" in metric.missing
    assert metric.details["prompts"]["chosen"] == 3
    assert metric.details["generated"]["sampling"]["temperature"] == 0.5
    out = tmp_path / "out" / "partiprompts"
    assert len(list(out.glob("0*.png"))) == 3
    assert (out / "sheet.png").is_file()
