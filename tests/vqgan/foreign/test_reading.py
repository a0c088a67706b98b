"""Foreign files: tensors come out bit for bit, nothing in them runs, and what is wrong is one clear line."""

import functools
import io
import os
import pickle
import re
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vqgan.foreign.reading import ForeignCheckpointError, read_tensors, unpacked


def save_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


SAVES = pytest.mark.parametrize("save", [save_zip, save_legacy])
Save = Callable[[Any, Path], None]


def tensors() -> dict[str, Tensor]:
    """Every dtype, and the layouts that a state dict may have: views, a shared storage, a scalar, an empty one."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=generator)
    floats = {str(kind): base.to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16)}
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    return {
        **floats,
        **{str(kind): torch.randint(0, 2, (3, 4), generator=generator).to(kind) for kind in kinds},
        "base": base,
        "transposed": base.T,
        "part": base[1:4, ::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
    }


def assert_same(read: Any, written: dict[str, Tensor]) -> None:
    assert list(read) == list(written)
    for name, tensor in written.items():
        assert read[name].dtype is tensor.dtype, name
        assert torch.equal(read[name], tensor), name


@SAVES
def test_tensors_come_out_bit_for_bit(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    parameters = {"weight": nn.Parameter(torch.randn(3)), "frozen": nn.Parameter(torch.ones(2), requires_grad=False)}
    save({"state_dict": OrderedDict(tensors()), "parameters": parameters, "epoch": 3, "names": ["a", (1, None)]}, path)
    content = read_tensors(path)
    assert_same(content["state_dict"], tensors())
    assert_same(content["parameters"], {name: parameter.data for name, parameter in parameters.items()})
    assert content["epoch"] == 3
    assert content["names"] == ["a", (1, None)]


@SAVES
def test_it_agrees_with_torch_on_a_modules_state_dict(save: Save, tmp_path: Path) -> None:
    save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict(), tmp_path / "weights")
    assert_same(read_tensors(tmp_path / "weights"), torch.load(tmp_path / "weights", weights_only=True))


def test_safetensors(tmp_path: Path) -> None:
    written = {name: tensor.contiguous().clone() for name, tensor in sorted(tensors().items())}
    save_file(written, tmp_path / "weights")
    assert_same(dict(sorted(read_tensors(tmp_path / "weights").items())), written)


@SAVES
def test_the_optimizers_state_is_left_out(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save({"state_dict": {"a": torch.ones(2)}, "optimizer_states": [{"state": {0: torch.ones(9)}}]}, path)
    assert read_tensors(path).keys() == {"state_dict"}


def test_the_optimizers_numbers_are_not_even_read(tmp_path: Path) -> None:
    save_zip({"state_dict": {"a": torch.ones(2)}, "optimizer": {0: torch.ones(9)}}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(tmp_path / "part", "w") as part:
        for name in whole.namelist():
            if not name.endswith("/data/1"):
                part.writestr(name, whole.read(name))
    assert torch.equal(read_tensors(tmp_path / "part")["state_dict"]["a"], torch.ones(2))


# Hostile files


class Payload:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def payloads(trace: Path) -> dict[str, Payload]:
    """By the name that is asked for: each would create `trace`."""
    return {
        f"{os.system.__module__}.system": Payload(os.system, f"touch {trace}"),
        "builtins.eval": Payload(eval, f"open({str(trace)!r}, 'w').close()"),
        "builtins.exec": Payload(exec, f"open({str(trace)!r}, 'w').close()"),
        "io.open": Payload(io.open, str(trace), "w"),
        "builtins.getattr": Payload(getattr, Payload(__import__, "os"), "system"),
        "shutil.copyfile": Payload(__import__("shutil").copyfile, __file__, str(trace)),
    }


@SAVES
@pytest.mark.parametrize("name", payloads(Path("x")))
def test_a_hostile_name_is_refused_by_name_and_nothing_runs(save: Save, name: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    save({"state_dict": {"a": torch.ones(2)}, "more": payloads(trace)[name]}, tmp_path / "weights")
    with pytest.raises(ForeignCheckpointError, match=re.escape(f"asks for {name}")) as error:
        read_tensors(tmp_path / "weights")
    assert "nothing of it was run" in str(error.value)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_the_payloads_are_real(tmp_path: Path) -> None:
    """Unpickled in the ordinary way they do what they say, or else the tests above would prove nothing."""
    for index, name in enumerate(payloads(tmp_path)):
        trace = tmp_path / str(index)
        if name != "builtins.getattr":
            result = pickle.loads(pickle.dumps(payloads(trace)[name]))
            if hasattr(result, "close"):
                result.close()
            assert trace.exists()


def test_a_hostile_name_in_a_tar(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    save_zip({"state_dict": Payload(os.system, f"touch {trace}")}, tmp_path / "stage1_last.ckpt")
    with tarfile.open(tmp_path / "model.tar", "w") as tar:
        tar.add(tmp_path / "stage1_last.ckpt", "1.3B/stage1_last.ckpt")
    with (
        unpacked(tmp_path / "model.tar", "stage1_last.ckpt") as path,
        pytest.raises(ForeignCheckpointError, match=r"asks for posix\.system, which weights do not need"),
    ):
        read_tensors(path)
    assert not trace.exists()


# Lightning's checkpoints, and pickled modules


@pytest.fixture
def fake_packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, type], None]]:
    """Registers a class as if it came from another project's package."""

    def register(name: str, kind: type) -> None:
        package, _, leaf = name.rpartition(".")
        parts = package.split(".")
        for end in range(1, len(parts) + 1):
            parent = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        setattr(sys.modules[package], leaf, kind)
        kind.__module__, kind.__qualname__ = package, leaf

    return register


def forget_packages(*roots: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in roots]:
        del sys.modules[name]


@SAVES
def test_a_lightning_checkpoint(save: Save, tmp_path: Path, fake_packages: Callable[[str, type], None]) -> None:
    class ModelCheckpoint:
        pass

    class AttributeDict(dict):
        pass

    class ListConfig:
        def __init__(self) -> None:
            self.content = [1, 1, 2]

    class AnyNode:
        def __getstate__(self) -> Any:
            return {"value": 3, "metadata": AttributeDict(key=int)}

    fake_packages("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", ModelCheckpoint)
    fake_packages("pytorch_lightning.utilities.parsing.AttributeDict", AttributeDict)
    fake_packages("omegaconf.listconfig.ListConfig", ListConfig)
    fake_packages("omegaconf.nodes.AnyNode", AnyNode)
    hparams = AttributeDict(ddconfig={"ch": 128, "ch_mult": ListConfig()}, node=AnyNode())
    nested: defaultdict[str, Any] = defaultdict(list, a=[1])
    content = {
        "state_dict": OrderedDict(tensors()),
        "callbacks": {
            ModelCheckpoint: {"best_model_score": np.float64(0.5), "path": Path("last.ckpt"), "best": torch.ones(2)}
        },
        "hyper_parameters": hparams,
        "lr_schedulers": [nested],
        "pytorch-lightning_version": "1.0.8",
        "array": np.arange(3),
    }
    save(content, tmp_path / "last.ckpt")
    forget_packages("pytorch_lightning", "omegaconf")

    read = read_tensors(tmp_path / "last.ckpt")
    assert_same(read["state_dict"], tensors())
    (callback,) = read["callbacks"].items()
    assert callback[0] == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert torch.equal(callback[1]["best"], torch.ones(2))
    assert read["hyper_parameters"]["ddconfig"] == {"ch": 128, "ch_mult": "omegaconf.listconfig.ListConfig"}
    assert read["pytorch-lightning_version"] == "1.0.8"
    assert read["lr_schedulers"] == [{"a": [1]}]


@SAVES
def test_pickled_modules(save: Save, tmp_path: Path, fake_packages: Callable[[str, type], None]) -> None:
    class Conv2d(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
            self.b = nn.Parameter(torch.randn(outputs))
            self.register_buffer("seen", torch.arange(3))
            self.register_buffer("passing", torch.ones(2), persistent=False)
            self.register_parameter("none", None)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.device = torch.device("cpu")
            self.make = functools.partial(nn.Conv2d, 3, kernel_size=1)
            group = OrderedDict(
                block_1=Conv2d(3, 4), relu=nn.ReLU(), pool=nn.MaxPool2d(2), up=nn.Upsample(scale_factor=2)
            )
            self.blocks = nn.Sequential(
                OrderedDict(input=Conv2d(2, 3), group_1=nn.Sequential(group), out=nn.Linear(2, 3))
            )

    fake_packages("dall_e.utils.Conv2d", Conv2d)
    fake_packages("dall_e.encoder.Encoder", Encoder)
    encoder = Encoder()
    expected = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    assert "blocks.group_1.block_1.w" in expected
    assert "blocks.input.passing" not in expected
    with pytest.MonkeyPatch.context() as patch:  # torch's older form warns that it cannot find the class's source text
        patch.setattr("warnings.warn", lambda *_, **__: None)
        save(encoder, tmp_path / "encoder.pkl")
        save({"module": encoder}, tmp_path / "nested.pkl")
    forget_packages("dall_e")

    read = read_tensors(tmp_path / "encoder.pkl")
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(read[name], tensor), name
    assert read_tensors(tmp_path / "nested.pkl")["module"].keys() == expected.keys()
    assert "dall_e" not in sys.modules


# Files that are damaged, or something else


@SAVES
def test_a_truncated_file_is_one_line_wherever_it_ends(save: Save, tmp_path: Path) -> None:
    save({"state_dict": tensors()}, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for end in (3, 20, len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 1):
        path = tmp_path / f"part-{end}"
        path.write_bytes(data[:end])
        with pytest.raises(
            ForeignCheckpointError, match=r"damaged or truncated|is refused: not a complete|no torch"
        ) as e:
            read_tensors(path)
        assert "\n" not in str(e.value)


@SAVES
def test_damage_anywhere_is_an_error_of_ours_or_harmless(save: Save, tmp_path: Path) -> None:
    """Bytes changed at random: never another exception. In the numbers of the older form it cannot be noticed."""
    save({"state_dict": {"a": torch.arange(8.0), "b": torch.ones(2, 2)}}, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), 3):
            damaged[place] = generator.integers(0, 256)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            read_tensors(tmp_path / "damaged")
        except ForeignCheckpointError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a pointer of Git LFS, not the weights"),
        (b"\n<!DOCTYPE html><html>", "is a web page, not the weights; the download failed"),
        (b"\x1f\x8b\x08rest", "is an archive, not a weight file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "is no torch or safetensors file"),
        (pickle.dumps({"a": [1, 2]}), "it is a plain pickle, not a file of torch.save"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{broken json    ", "is damaged or truncated"),
    ],
)
def test_what_is_no_checkpoint(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ForeignCheckpointError, match=re.escape(message)):
        read_tensors(tmp_path / "file")


def test_no_file_a_folder_another_zip_and_a_list(tmp_path: Path) -> None:
    with pytest.raises(ForeignCheckpointError, match="nowhere cannot be read: No such file or directory"):
        read_tensors(tmp_path / "nowhere")
    with pytest.raises(ForeignCheckpointError, match="cannot be read: Is a directory"):
        read_tensors(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("photo.txt", "hello")
    with pytest.raises(ForeignCheckpointError, match=r"a zip file without torch's data\.pkl"):
        read_tensors(tmp_path / "other.zip")
    save_zip([torch.ones(2)], tmp_path / "list")
    with pytest.raises(ForeignCheckpointError, match="holds a list, not a mapping of names to tensors"):
        read_tensors(tmp_path / "list")


def rebuild(size: tuple[int, ...], stride: tuple[int, ...], count: int = 4, offset: int = 0) -> bytes:
    """The pickle of {"a": a tensor of this layout over a storage that claims `count` floats}."""

    class Reference:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(item, Reference) else None

    stream = io.BytesIO()
    rebuilt = Payload(torch._utils._rebuild_tensor_v2, Reference(), offset, size, stride, False, OrderedDict())
    Pickler(stream, 2).dump({"a": rebuilt})
    return stream.getvalue()


def archive_of(data: bytes, path: Path, numbers: bytes = bytes(16), compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", numbers)


def test_sizes_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    archive_of(rebuild((2, 2), (2, 1)), path)
    assert torch.equal(read_tensors(path)["a"], torch.zeros(2, 2))
    lies = [
        rebuild((2**40, 2**40), (0, 0)),  # a view as large as one likes of four numbers
        rebuild((2, 2), (2, 2)),
        rebuild((4,), (1,), offset=1),
        rebuild((4,), (-1,)),
        rebuild((4,), (1,), count=2**40),
        rebuild((1,) * 40, (1,) * 40),
        rebuild((2, 2), (1,)),
    ]
    for lie in lies:
        archive_of(lie, path)
        with pytest.raises(ForeignCheckpointError, match="damaged or truncated"):
            read_tensors(path)
    archive_of(rebuild((4,), (1,), count=2**22), path, bytes(2**24), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**16
    with pytest.raises(ForeignCheckpointError, match="is compressed, or longer than it can be"):
        read_tensors(path)


def test_contents_that_hold_themselves_or_repeat_without_end(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    loop: dict[str, Any] = {"a": torch.ones(2)}
    loop["self"] = [loop]
    save_zip(loop, path)
    assert torch.equal(read_tensors(path)["a"], torch.ones(2))
    doubled: list[Any] = []
    for _ in range(60):
        doubled = [doubled, doubled]  # 2^60 leaves for whoever walks every path
    save_zip({"a": torch.ones(2), "doubled": doubled}, path)
    assert torch.equal(read_tensors(path)["a"], torch.ones(2))
    deep = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
    archive_of(b"\x80\x02}X\x01\x00\x00\x00a" + deep[2:-1] + b"s.", path)
    with pytest.raises(ForeignCheckpointError, match="nested too deeply"):
        read_tensors(path)


def test_modules_within_modules_without_end(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    for _ in range(40):
        module = nn.Sequential(module, module)  # type: ignore[assignment]
    save_zip(module, tmp_path / "weights")
    with pytest.raises(ForeignCheckpointError, match="a module with too many tensors"):
        read_tensors(tmp_path / "weights")


def test_legacy_sizes_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save_legacy({"a": torch.arange(4.0)}, path)
    data = path.read_bytes()
    place = data.rindex(struct.pack("<q", 4))
    for count in (2**40, -5, 3):
        path.write_bytes(data[:place] + struct.pack("<q", count) + data[place + 8 :])
        with pytest.raises(ForeignCheckpointError, match=r"ends within its numbers|bytes, 16 expected"):
            read_tensors(path)


def test_a_big_endian_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(ForeignCheckpointError, match="written on a big-endian machine"):
        read_tensors(tmp_path / "weights")


# Tar archives


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_gives_the_one_file_and_writes_nowhere_else(mode: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.tar"
    with tarfile.open(file, mode) as tar:
        for name in ("../../other", "/tmp/vqgan-tar-escape", "../../stage1_last.ckpt"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("linked.ckpt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with unpacked(file, "stage1_last.ckpt") as path:
        assert path.read_bytes() == b"../../stage1_last.ckpt"
        assert sorted(path.parent.iterdir()) == [path]
    assert not path.exists()
    assert not Path("/tmp/vqgan-tar-escape").exists()
    for name in ("linked.ckpt", "missing.ckpt"):
        with pytest.raises(ForeignCheckpointError, match=f"holds no {name}"), unpacked(file, name):
            pass


def test_a_tar_that_is_cut_off_or_none(tmp_path: Path) -> None:
    file = tmp_path / "model.tar"
    with tarfile.open(file, "w:gz") as tar:
        info = tarfile.TarInfo("stage1_last.ckpt")
        info.size = 1 << 16
        tar.addfile(info, io.BytesIO(os.urandom(1 << 16)))
    file.write_bytes(file.read_bytes()[: 1 << 15])
    for broken in (file, tmp_path / "nowhere", Path(__file__)):
        with (
            pytest.raises(ForeignCheckpointError, match="is not a whole tar archive"),
            unpacked(broken, "stage1_last.ckpt"),
        ):
            pass
