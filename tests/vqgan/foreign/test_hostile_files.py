"""Weight files whose cost is out of proportion to their size: refused in one line, within seconds and megabytes."""

import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vqgan.foreign.reading import ForeignCheckpointError, read_tensors

TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQK\x00K\x01\x85K\x01\x85"
    b"\x89}tR"
)
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)


def zipped(program: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", b"\0" * 4)
    return path


def legacy(program: bytes, path: Path) -> Path:
    path.write_bytes(LEGACY + program)
    return path


def text(length: int) -> bytes:
    return b"X" + struct.pack("<I", length) + b"n" * length


def integer(value: int) -> bytes:
    digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<I", len(digits)) + digits


def module(parameters: bytes, modules: bytes) -> bytes:
    return (
        b"ctorch.nn.modules.container\nSequential\n)\x81}(U\x0b_parameters"
        + parameters
        + b"U\x08_buffers}U\x08_modules"
        + modules
        + b"ub"
    )


def doubling_modules(depth: int) -> bytes:
    """Each module holds the one below it twice: 2 ** depth names of one tensor."""
    program = module(b"}U\x01w" + TENSOR + b"s", b"}") + b"q\x00"
    for level in range(depth):
        get = b"h" + bytes([level])
        program += b"0" + module(b"}", b"}(U\x01a" + get + b"U\x01b" + get + b"u") + b"q" + bytes([level + 1])
    return b"\x80\x02" + program + b"."


def shared_names() -> bytes:
    """Many modules that share one with 200 long names: the joined names are a thousand times the file."""
    parameters = b"}(" + b"".join(text(180)[:-3] + b"%03d" % number + TENSOR for number in range(200)) + b"u"
    inner = module(parameters, b"}") + b"q\x01"
    level = inner
    for number in range(40):
        shared = b"".join(b"U\x03%03d" % child + (b"h\x01" if child else level) for child in range(45))
        level = module(b"}", b"}(" + shared + b"u") if number < 1 else module(b"}", b"}(U\x03xxx" + level + b"u")
    return b"\x80\x02" + level + b"."


COLLIDING = b"".join(integer(number * ((1 << 61) - 1)) + b"Ns" for number in range(1, 40_000))
BOMBS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "large integers as keys": (
        lambda p: zipped(b"\x80\x02}" + integer(1 << (1 << 20)) + b"q\x00Ns" + b"h\x00Ns" * 1000 + b".", p),
        "a whole number of 1048577 bits",
    ),
    "integers of one hash": (lambda p: zipped(b"\x80\x02}" + COLLIDING + b".", p), "a key of more than 61 bits"),
    "tuples of integers of one hash": (
        lambda p: zipped(b"\x80\x02}" + integer((1 << 61) - 1) + b"\x85Ns.", p),
        "a key of more than 61 bits",
    ),
    "many keys of two parts": (
        lambda p: zipped(b"\x80\x02}" + b"".join(integer(number) + b"K\x01\x86Ns" for number in range(5000)) + b".", p),
        "keys of several parts",
    ),
    "long text as a key": (
        lambda p: zipped(b"\x80\x02}" + text(5000) + b"q\x00Ns" + b"h\x00Ns" * 1000 + b".", p),
        "a key of 5000 characters",
    ),
    "long text": (lambda p: zipped(b"\x80\x02" + text(2 << 20) + b".", p), "a text of 2097152 characters"),
    "dictionaries": (lambda p: legacy(b"}" * (2 << 20) + b".", p), "more than 100000 values lying"),
    "marks": (lambda p: zipped(b"\x80\x02" + b"(" * (2 << 20) + b".", p), "more than 1000 open marks"),
    "memo": (lambda p: zipped(b"\x80\x04N" + b"\x94" * (2 << 20) + b".", p), "more than 1000000 operations"),
    "modules that double": (lambda p: zipped(doubling_modules(40), p), "too many tensors, or too long names"),
    "names that are shared": (lambda p: zipped(shared_names(), p), "too many tensors, or too long names"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(bomb: str, tmp_path: Path) -> None:
    write, message = BOMBS[bomb]
    path = write(tmp_path / "bomb.ckpt")
    small = path.stat().st_size < 1 << 20  # tracing costs time, and what is large has one cause only
    if small:
        tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ForeignCheckpointError, match=message) as caught:
            read_tensors(path)
        assert time.process_time() - start < 20
        assert not small or tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_an_archive_of_very_many_records_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vqgan.foreign import reading

    torch.save({"a": torch.zeros(2)}, tmp_path / "x.ckpt")
    assert read_tensors(tmp_path / "x.ckpt")["a"].tolist() == [0, 0]
    monkeypatch.setattr(reading, "_LARGEST_DIRECTORY", 10)
    with pytest.raises(ForeignCheckpointError, match="its list of records has"):
        read_tensors(tmp_path / "x.ckpt")


def test_a_checkpoint_with_a_large_optimizer_is_read(tmp_path: Path) -> None:
    """The limits are far from what is published."""
    state = {f"layer.{number}.weight": torch.zeros(2) for number in range(2000)}
    moments = {number: {"step": 3, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)} for number in range(2000)}
    torch.save({"state_dict": state, "optimizer_states": [{"state": moments}]}, tmp_path / "x.ckpt")
    assert len(read_tensors(tmp_path / "x.ckpt")["state_dict"]) == 2000
