"""Models by Hub name: what is looked where, how long it takes, what a mistake says, and a push that loads again."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

import vqgan
from parti.text.checkpoint import TOKENIZER_FILES, WEIGHT_FILES, find_checkpoint
from tests.fake_hub import FakeHub
from tests.tiny import tiny_image_tokenizer
from vqgan import load_tokenizer
from vqgan.config.schema import ConfigError
from vqgan.hub import huggingface as hub
from vqgan.hub.huggingface import fetch_model, is_hub_name
from vqgan.hub.model_folder import CONFIG_FILE, WEIGHTS_FILE, ModelFolderError, find_model_folder
from vqgan.image_tokenizer import ImageTokenizer


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Its models, and an empty folder to work in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return FakeHub(tmp_path, monkeypatch)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that must not be asked."""

    def model_info(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)


def error_of(name: str) -> str:
    """The one line of a name that gives no model."""
    with pytest.raises(ModelFolderError) as caught:
        load_tokenizer(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make_cache(cache: Path, name: str, commit: str, refs: dict[str, str]) -> Path:
    """The layout of the Hub's cache, made by hand. Returns the folder of the commit's files."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    for reference, target in refs.items():
        (repository / "refs" / reference).write_text(target)
    (repository / "snapshots" / commit).mkdir(parents=True)
    return repository / "snapshots" / commit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", True),
        ("runs/parti-shapes", True),
        ("owner/name@v1.0", True),
        ("Owner_1/a.b-c@refs/pr/3", True),
        ("name", False),
        ("runs/mine/model", False),
        ("./name", False),
        ("../name", False),
        ("/name", False),
        ("~/name", False),
        ("owner/name/", False),
        ("owner/na--me", False),
        ("owner/name@", False),
        ("owner/nämé", False),
    ],
)
def test_what_has_the_form_of_a_hub_name(text: str, expected: bool) -> None:
    assert is_hub_name(text) is expected


def test_what_is_pushed_loads_again_by_its_name(fake_hub: FakeHub) -> None:
    tokenizer = tiny_image_tokenizer(seed=3)
    address = tokenizer.push_to_hub("me/tok", private=True, token="secret", commit_message="first")
    assert address == "https://huggingface.co/me/tok"
    assert (fake_hub.commits, fake_hub.private, fake_hub.tokens) == (
        [("me/tok", "first")],
        {"me/tok": True},
        ["secret"],
    )

    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = tokenizer.encode(images)
    for load in (ImageTokenizer.from_pretrained, load_tokenizer):
        loaded = load("me/tok")
        assert torch.equal(loaded.encode(images), codes)
        assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert fake_hub.fetched("me/tok") == [
        "SHA256SUMS",
        CONFIG_FILE,
        WEIGHTS_FILE,
    ]  # no card: what the model is read from
    assert fake_hub.asked == ["me/tok@main"]  # the second time it came from the cache


def test_the_card_says_how_to_load_the_model_and_an_edited_one_stays(fake_hub: FakeHub) -> None:
    tokenizer = tiny_image_tokenizer()
    assert tokenizer.push_to_hub("tok") == "https://huggingface.co/me/tok"
    card = fake_hub.models / "me" / "tok" / "README.md"
    _, head, body = card.read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(head) == {"library_name": "parti-toolkit", "tags": ["image-tokenizer", "vqgan", "vit_vqgan"]}
    count = sum(weight.numel() for weight in tokenizer.autoencoder.parameters())
    for words in (f"| Parameters | {count:,} |", "| 4x4, each one of 32 |", "16x16, RGB", "`nearest`"):
        assert words in body

    # The example runs as it stands.
    example = body.split("```python\n")[1].split("```")[0]
    scope = {"images": torch.zeros(1, 3, 16, 16)}
    exec(example, scope)
    assert scope["codes"].shape == (1, 16)
    assert scope["images"].shape == (1, 3, 16, 16)

    card.write_text("my own words", encoding="utf-8")
    tokenizer.push_to_hub("me/tok")
    assert card.read_text(encoding="utf-8") == "my own words"
    assert len(fake_hub.commits) == 2


def test_a_folder_here_comes_before_a_model_of_the_same_name(fake_hub: FakeHub) -> None:
    tiny_image_tokenizer(seed=1).push_to_hub("runs/tok")
    ours = tiny_image_tokenizer(seed=2)
    ours.save_pretrained("runs/tok/model")
    loaded = load_tokenizer("runs/tok")
    assert torch.equal(next(loaded.parameters()), next(ours.parameters()))
    assert fake_hub.asked == []


def test_a_mistyped_path_is_said_without_asking_the_hub(fake_hub: FakeHub) -> None:
    Path("runs/vqgan-shapes").mkdir(parents=True)
    Path("elsewhere/deep").mkdir(parents=True)
    assert error_of("runs/vqgan-shaped") == (
        "'runs/vqgan-shaped' is no folder here; near ones: runs/vqgan-shapes; for the Hugging Face Hub's model of that "
        "name give runs/vqgan-shaped@main"
    )
    # Of this toolkit's own folders none need be there; of another's, one.
    for path in ("runs/x", "out/parti", "elsewhere/x", "elsewheer/deep/model", "a/b/c", "~/x", "back\\slash"):
        assert " is no folder here" in error_of(path)
    assert "near ones: elsewhere/deep; and the Hugging Face Hub gives no" in error_of("elsewheer/deep")  # may be both
    assert fake_hub.asked == ["elsewheer/deep@main"]
    fake_hub.asked.clear()
    for path in ("nowhere", "./runs/vqgan-shaped", "runs/vqgan-shaped/model", "/no/such/folder"):
        assert error_of(path).startswith("no model in ")
    with pytest.raises(ModelFolderError, match=r"no model in me/tok: .*'me/tok' is no folder here"):  # a Path is a path
        load_tokenizer(Path("me/tok"))
    assert fake_hub.asked == []

    # The way out that the message names.
    tiny_image_tokenizer().push_to_hub("runs/vqgan-shaped")
    assert load_tokenizer("runs/vqgan-shaped@main").vocab_size == 32


def test_a_name_that_nobody_has_leads_with_the_folder_that_is_missing(fake_hub: FakeHub) -> None:
    assert error_of("mine/parti-shapes") == (
        "'mine/parti-shapes' is no folder here; and the Hugging Face Hub gives no model of that name (it has no such "
        "model; a private one needs hf auth login): give a folder, or fetch the Hub's where there is a network: hf "
        "download mine/parti-shapes"
    )
    assert error_of("me/tok@v2").endswith(": hf download me/tok --revision v2")
    (fake_hub.models / "me" / "words").mkdir(parents=True)
    (fake_hub.models / "me" / "words" / CONFIG_FILE).write_text("{}")
    assert "gives no model of that name (it has none of model.safetensors)" in error_of("me/words")


def test_a_hub_that_does_not_answer_is_waited_for_a_few_seconds_only(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub._PATIENCE <= 5
    monkeypatch.setattr(hub, "_PATIENCE", 0.1)
    released, answered = threading.Event(), threading.Event()

    # As a name server does that drops what it receives: no time-out of the HTTP client would end that.
    def model_info(*_: object, **__: object) -> None:
        released.wait(60)
        answered.set()

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    message = error_of("me/tok")
    assert not answered.is_set(), "it was waited for"
    released.set()
    assert "gives no model of that name (no answer in 0.1 seconds)" in message
    assert fake_hub.asked == []


@pytest.mark.usefixtures("no_hub")
def test_the_cache_is_read_by_branch_tag_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"main": "1" * 40, "v1": "2" * 40}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    first = make_cache(tmp_path / "hub", "me/tok", commits["main"], commits)
    second = first.with_name(commits["v1"])
    tokenizers = [tiny_image_tokenizer(seed) for seed in (1, 2)]
    for tokenizer, folder in zip(tokenizers, (first, second), strict=True):
        tokenizer.save_pretrained(folder)
    for name, expected in (("me/tok", 0), ("me/tok@main", 0), ("me/tok@v1", 1), (f"me/tok@{commits['v1']}", 1)):
        loaded = load_tokenizer(name)
        assert torch.equal(next(loaded.parameters()), next(tokenizers[expected].parameters()))
    assert find_model_folder("me/tok") == first


def test_offline_in_a_process_of_its_own_with_a_cache_of_its_own(tmp_path: Path) -> None:
    """The real environment variables, which are read when huggingface_hub is imported."""
    folder = make_cache(tmp_path / "hub", "me/tok", "1" * 40, {"main": "1" * 40})
    tiny_image_tokenizer().save_pretrained(folder)
    program = (
        "import socket; from vqgan.hub.huggingface import NotOnHubError, fetch_model\n"
        "socket.socket.connect = socket.getaddrinfo = lambda *_: print('asks the network')\n"
        "print(fetch_model('me/tok', ['model.safetensors'], ['config.json']))\n"
        "try: fetch_model('me/other', ['model.safetensors'], [])\n"
        "except NotOnHubError as error: print(error)\n"
    )
    environment = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(variable, None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found, message = done.stdout.splitlines()
    assert Path(found) == folder
    assert "of that name (it is not in the cache, and HF_HUB_OFFLINE is set): give a folder" in message


def test_text_models_are_found_in_the_same_way(fake_hub: FakeHub) -> None:
    theirs = fake_hub.models / "someone" / "bert"
    theirs.mkdir(parents=True)
    for name in (CONFIG_FILE, "tokenizer.json", "vocab.txt", WEIGHTS_FILE, "pytorch_model.bin", "modeling.py"):
        (theirs / name).write_text("{}")
    find_checkpoint("someone/bert", TOKENIZER_FILES)
    assert fake_hub.fetched("someone/bert") == [CONFIG_FILE, "tokenizer.json", "vocab.txt"]
    # The cache has no weights yet: it is asked again. Nothing that could execute code comes down.
    find_checkpoint("someone/bert", WEIGHT_FILES)
    assert fake_hub.fetched("someone/bert") == [CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json", "vocab.txt"]
    assert fake_hub.asked == ["someone/bert@main"] * 2

    (fake_hub.models / "plain").mkdir()  # from before names had owners
    (fake_hub.models / "plain" / "tokenizer.json").write_text("{}")
    assert (fetch_model("plain", TOKENIZER_FILES, []) / "tokenizer.json").is_file()
    with pytest.raises(ConfigError, match=r"'\./bert' is no folder here$"):
        find_checkpoint("./bert", TOKENIZER_FILES)


def test_the_packages_give_their_faces_and_import_nothing_heavy_before() -> None:
    program = (
        "import sys, vqgan, parti; heavy = {'torch', 'pydantic', 'huggingface_hub'} & set(sys.modules); "
        "assert not heavy, heavy; from parti import TextToImage; from vqgan import ImageTokenizer, load_tokenizer; "
        "late = {'torchvision', 'transformers', 'timm', 'datasets', 'huggingface_hub'} & set(sys.modules); "
        "assert not late, late; assert TextToImage.__module__ == 'parti.pipeline'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert vqgan.ImageTokenizer is ImageTokenizer
    with pytest.raises(AttributeError, match="module 'vqgan' has no attribute 'ImageTokeniser'"):
        _ = vqgan.ImageTokeniser
