"""Reading weight files written by other projects, without running anything they contain.

Four containers: safetensors; torch's zip archive; torch's older single file (before 1.6); either torch form holding
whole pickled modules. In the torch forms a pickle describes the tensors, whose numbers lie beside it: the pickle is
read as data (see `vqgan.foreign.pickle_program` for why that is safe), the numbers are copied from where it points.

Sizes are checked against the file before memory is taken: a storage is as long as the record that holds it, a tensor
lies inside its storage, and all that is read together is no longer than the file.
"""

import mmap
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from math import prod
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vqgan.errors import UserError
from vqgan.foreign.pickle_program import Call, Global, Persistent, PickleRefusedError, read_pickle

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_LARGEST_PICKLE, _LARGEST_MEMBER = 1 << 26, 1 << 34
_LARGEST_DIRECTORY = 1 << 24
"""Bytes of a zip file's list of records: some 100,000 of them."""
_DEEPEST, _MOST_AXES = 100, 16
_MOST_TENSORS, _LONGEST_NAME = 10_000, 200
_MOST_JOINED = 50_000_000
"""Characters of all dotted names that are joined while modules become state dicts, of each module's own anew."""
_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class ForeignCheckpointError(UserError, ValueError):
    """A weight file of another project that cannot be read or does not fit: what was wrong, and the remedy."""


def read_tensors(path: Path) -> dict[str, Any]:
    """The file's content as nested plain containers with tensors (on the CPU) at the leaves.

    A pickled module becomes its state dict: dotted names to tensors. Any other object becomes its contents if it is a
    kind of dict, else the name of its class. The optimizer's state, twice as large as the weights, is left out.
    Raises ForeignCheckpointError.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
        read = _reader_of(head)
        content = read(path) if read else None
    except OSError as error:
        raise ForeignCheckpointError(f"{path} cannot be read: {error.strerror or error}; give a weight file") from None
    except PickleRefusedError as error:
        raise ForeignCheckpointError(
            f"{path} is refused: {error}; get the weights from their source, or as safetensors"
        ) from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:100]
        raise ForeignCheckpointError(f"{path} is damaged or truncated ({reason}); download it again") from None
    if read is None:
        raise ForeignCheckpointError(f"{path} is {_what_it_is(head)}")
    if not isinstance(content, dict):
        raise ForeignCheckpointError(
            f"{path} holds a {type(content).__name__}, not a mapping of names to tensors; give a file of weights"
        )
    return content


@contextmanager
def unpacked(archive: Path, name: str) -> Iterator[Path]:
    """A temporary copy of the one file in a tar, plain or compressed, whose path there ends in `name`.

    The path itself is not used, and nothing else is unpacked. Raises ForeignCheckpointError.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "member"
        try:
            with tarfile.open(archive) as tar:
                member = next((file for file in tar if file.isreg() and PurePosixPath(file.name).name == name), None)
                if member is None:
                    raise ForeignCheckpointError(f"{archive} holds no {name}; give the archive as it was published")
                if member.issparse() or member.size > _LARGEST_MEMBER:
                    raise ForeignCheckpointError(f"{name} in {archive} is too large; unpack it yourself, and give it")
                with copy.open("wb") as file:
                    copyfileobj(tar.extractfile(member), file, 1 << 20)  # type: ignore[arg-type]
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise ForeignCheckpointError(
                f"{archive} is not a whole tar archive ({' '.join(str(error).split())}); download it again"
            ) from None
        yield copy


def _reader_of(head: bytes) -> Callable[[Path], Any] | None:
    """The function that reads files that begin with `head`; None for a file that is no checkpoint."""
    if head[:4] == b"PK\x03\x04":
        return _read_zip
    if head[8:9] == b"{":
        return load_file
    return _read_legacy if head[:1] == b"\x80" else None


class _DamagedError(ValueError):
    """Contents that contradict each other."""


_DAMAGE = (
    *(_DamagedError, SafetensorError, zipfile.BadZipFile, struct.error, zlib.error),
    *(EOFError, RuntimeError, OverflowError, ValueError, TypeError, AttributeError, LookupError),
)
"""What zipfile, safetensors and torch raise for files that are not whole."""


_ReadStorage = Callable[[str, int], bytearray]
"""The bytes of the storage of this key. Raises one of `_DAMAGE` where there are not exactly so many."""


def _read_zip(path: Path) -> Any:
    _check_directory(path)
    with zipfile.ZipFile(path) as archive:
        records = _ZipRecords(archive, path.stat().st_size)
        return _Plain(records.storage).top(read_pickle(BytesIO(records.pickle())))


def _check_directory(path: Path) -> None:
    """Raises _DamagedError where a zip file lists more records than weights have; zipfile reads all of the list."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - 200))
        tail = file.read()
    end, wide = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    size = struct.unpack_from("<I", tail, end + 12)[0] if 0 <= end <= len(tail) - 22 else 0
    if size == 0xFFFFFFFF or wide >= 0:
        size = struct.unpack_from("<Q", tail, wide + 40)[0] if 0 <= wide <= len(tail) - 56 else size
    if size > _LARGEST_DIRECTORY:
        raise _DamagedError(f"its list of records has {size} bytes, at most {_LARGEST_DIRECTORY} are read")


class _ZipRecords:
    """The records of torch's archive: FOLDER/data.pkl, and FOLDER/data/KEY for the storages, none compressed."""

    def __init__(self, archive: zipfile.ZipFile, budget: int) -> None:
        self.archive = archive
        self.budget = budget
        self.infos = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.infos if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise _DamagedError("a zip file without torch's data.pkl")
        self.folder = pickles[0].removesuffix("data.pkl")
        if self._has("byteorder") and self._record("byteorder", 16) != b"little":
            raise _DamagedError("written on a big-endian machine")

    def pickle(self) -> bytes:
        return self._record("data.pkl", _LARGEST_PICKLE)

    def storage(self, key: str, length: int) -> bytearray:
        data = self._record(f"data/{key}", length)
        if len(data) != length:
            raise _DamagedError(f"storage {key[:20]} has {len(data)} bytes, {length} expected")
        return bytearray(data)

    def _has(self, name: str) -> bool:
        return self.folder + name in self.infos

    def _record(self, name: str, limit: int) -> bytes:
        info = self.infos.get(self.folder + name)
        if info is None:
            raise _DamagedError(f"record {name[:40]} is missing")
        # Records that overlap, or that are compressed, could be larger than the file.
        self.budget -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit or self.budget < 0:
            raise _DamagedError(f"record {name[:40]} is compressed, or longer than it can be")
        return self.archive.read(info)


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        # Five pickles (magic number, protocol, the machine, the object, keys of storages), then the storages.
        if read_pickle(mapped) != _LEGACY_MAGIC or read_pickle(mapped) != _LEGACY_PROTOCOL:
            raise PickleRefusedError("it is a plain pickle, not a file of torch.save")
        if not read_pickle(mapped).get("little_endian", True):
            raise _DamagedError("written on a big-endian machine")
        references: list[Persistent] = []
        content = read_pickle(mapped, references)
        return _Plain(_LegacyStorages(mapped, read_pickle(mapped), references).storage).top(content)


class _LegacyStorages:
    """The end of the file: for each key, in this order, the number of elements (int64) and the elements."""

    def __init__(self, mapped: mmap.mmap, keys: Any, references: list[Persistent]) -> None:
        self.mapped = mapped
        self.ranges: dict[str, tuple[int, int]] = {}
        sizes = {storage.key: storage.dtype.itemsize for storage in map(_Storage, references)}
        position = mapped.tell()
        for key in keys:
            (count,) = struct.unpack_from("<q", mapped, position)
            end = position + 8 + count * sizes[key]
            if count < 0 or end > len(mapped):
                raise _DamagedError("the file ends within its numbers")
            self.ranges[key] = (position + 8, end)
            position = end

    def storage(self, key: str, length: int) -> bytearray:
        start, end = self.ranges[key]
        if end - start != length:
            raise _DamagedError(f"storage {key[:20]} has {end - start} bytes, {length} expected")
        return bytearray(memoryview(self.mapped)[start:end])


class _Storage:
    """What a pickle says of a storage: ("storage", type, key, device, number of elements[, view])."""

    def __init__(self, reference: Any) -> None:
        identity = reference.identity if isinstance(reference, Persistent) else None
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise _DamagedError("a tensor without a storage")
        _, kind, key, _, count = identity[:5]
        name = kind.name.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, Global) else ""
        whole = len(identity) == 5 or identity[5] is None
        if name not in _DTYPES or not isinstance(key, str) or not _are_sizes([count]) or not whole:
            raise _DamagedError("a storage of unknown type")
        self.dtype, self.key, self.count = _DTYPES[name], key, int(count)


class _Plain:
    """From what a pickle describes to containers and tensors. Every node is converted once, however often it is met."""

    def __init__(self, read_storage: _ReadStorage) -> None:
        self.read_storage = read_storage
        self.storages: dict[str, Tensor] = {}
        self.done: dict[int, Any] = {}
        self.joined = 0

    def top(self, content: Any) -> Any:
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if not str(key).startswith("optimizer")}
        return self.convert(content, 0)

    def convert(self, node: Any, depth: int) -> Any:
        if isinstance(node, Global):
            return node.name
        if isinstance(node, Persistent):
            return "a storage"
        if not isinstance(node, list | tuple | dict | Call):
            return node
        if depth > _DEEPEST:
            raise _DamagedError("nested too deeply for a file of weights")
        if id(node) not in self.done:
            self.done[id(node)] = None  # what an object finds that contains itself
            self.done[id(node)] = self._contents(node, depth + 1)
        return self.done[id(node)]

    def _contents(self, node: Any, depth: int) -> Any:
        if isinstance(node, list | tuple):
            return type(node)(self.convert(item, depth) for item in node)
        if isinstance(node, dict):
            return {_plain_key(key): self.convert(value, depth) for key, value in node.items()}
        if node.name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return self.convert(node.arguments[0], depth)
        if node.name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            return self._tensor(node.arguments)
        if isinstance(node.state, dict) and {"_parameters", "_buffers", "_modules"} <= node.state.keys():
            return self._module(node.state, depth)
        if node.items:
            return self.convert(node.items, depth)
        return str(node.name)

    def _module(self, state: dict[str, Any], depth: int) -> dict[str, Tensor]:
        """What `state_dict()` of the pickled `torch.nn.Module` would give."""
        parameters, buffers, modules = (
            self.convert(state[name], depth) for name in ("_parameters", "_buffers", "_modules")
        )
        passing = self.convert(state.get("_non_persistent_buffers_set", ()), depth)
        own = {**parameters, **{name: buffer for name, buffer in buffers.items() if name not in passing}}
        flat = {name: tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
        for name, tensors in modules.items():
            if not isinstance(tensors, dict):
                continue
            self.joined += sum(len(str(name)) + 1 + len(str(inner)) for inner in tensors)
            if len(flat) + len(tensors) > _MOST_TENSORS or len(str(name)) > _LONGEST_NAME or self.joined > _MOST_JOINED:
                raise _DamagedError("a module with too many tensors, or too long names")
            flat |= {f"{name}.{inner}": tensor for inner, tensor in tensors.items()}
        return flat

    def _tensor(self, arguments: tuple[Any, ...]) -> Tensor:
        reference, offset, size, stride = arguments[:4]
        storage = _Storage(reference)
        if not _are_sizes([offset, *size, *stride]) or len(size) != len(stride) or len(size) > _MOST_AXES:
            raise _DamagedError("a tensor of impossible shape")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if prod(size) > storage.count or (prod(size) and last >= storage.count):
            raise _DamagedError(f"a tensor of shape {size} reaches outside of its {storage.count} stored numbers")
        if storage.key not in self.storages:
            data = self.read_storage(storage.key, storage.count * storage.dtype.itemsize)
            whole = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            self.storages[storage.key] = whole
        return self.storages[storage.key].view(storage.dtype).as_strided(size, stride, offset)


def _plain_key(key: Any) -> Any:
    return key.name if isinstance(key, Global | Call) else key


def _are_sizes(values: list[Any]) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _what_it_is(head: bytes) -> str:
    """For a file that is no checkpoint: its kind, as far as the first bytes tell, and the remedy."""
    if not head:
        return "empty; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the weights; run `git lfs pull`, or download the file itself"
    if head.lstrip()[:1] == b"<":
        return "a web page, not the weights; the download failed"
    if head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar":
        return "an archive, not a weight file; give its format (--format mindalle), or unpack it"
    return "no torch or safetensors file; give a file of weights"
