"""One flipped byte anywhere in a code cache: refused in one line that names the file, or what is read is the same."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from parti.code_cache.manifest import CacheRecord, read_record, write_record
from parti.code_cache.shard import Row, Shard, ShardTypes, write_shard
from vqgan.config.schema import validate
from vqgan.data.source import DataError, UnusableSample

POSITIONS = range(32, 40)
TYPES = ShardTypes(2, 6, np.dtype(np.uint8), 5, np.dtype(np.uint16))


def rows() -> list[Row]:
    """Six images, among them one without captions and one with three."""
    draw = np.random.default_rng(0)
    made = []
    for position in (32, 33, 35, 36, 37, 39):
        captions = tuple(f"caption {number} of {position}: ü" for number in range((position - 32) % 4))
        ids = draw.integers(0, 700, (len(captions), 5))
        cut = tuple(number == 1 for number in range(len(captions)))
        made.append(Row(position, f"folder/{position}.png", captions, draw.integers(0, 32, (2, 6)), ids, cut))
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    skipped = {34: UnusableSample("34.png", "no caption"), 38: UnusableSample("38.png", "cut off")}
    write_shard(tmp_path / "train-00002.arrow", rows(), skipped, TYPES)
    return tmp_path / "train-00002.arrow"


def read(path: Path) -> list[object]:
    """Everything that a shard says of its positions."""
    shard = Shard(path)
    said: list[object] = []
    for position in POSITIONS:
        try:
            row = shard.row(position)
        except UnusableSample as error:
            said.append((position, error.name, error.cause))
            continue
        ids = None if row.text_ids is None else row.text_ids.tolist()
        said.append((position, row.name, row.captions, row.codes.tolist(), ids, row.text_truncated))
    return said


def flipped(path: Path, masks: tuple[int, ...], stride: int = 1) -> Iterator[tuple[int, int]]:
    """Writes the file with each of its bytes, or every few bytes, changed by each mask in turn."""
    whole = path.read_bytes()
    for at in range(0, len(whole), stride):
        for mask in masks:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :])
            yield at, mask
    path.write_bytes(whole)


def assert_flips_are_noticed(path: Path, masks: tuple[int, ...], stride: int = 1) -> None:
    as_written, refusals = read(path), {}
    for place in flipped(path, masks, stride):
        try:
            said = read(path)
        except DataError as error:
            refusals[place] = str(error)
        else:
            assert said == as_written, place
    for place, message in refusals.items():
        assert message.startswith(f"{path} is missing or damaged ("), place
        assert message.endswith("remove it and encode again"), place
        assert "\n" not in message, place
    assert len(refusals) * stride > 1000 * len(masks), "codes, texts, ids, names, offsets and the index"


def test_a_flipped_byte_of_a_shard_is_noticed(path: Path) -> None:
    assert_flips_are_noticed(path, (0x01,), stride=5)


@pytest.mark.slow
def test_each_flipped_bit_of_a_shard_is_noticed(path: Path) -> None:
    assert_flips_are_noticed(path, (*(1 << bit for bit in range(8)), 0xFF))


def test_only_the_damaged_row_is_refused(path: Path) -> None:
    whole, damaged = path.read_bytes(), rows()[2]
    at = whole.index(damaged.codes.astype(np.uint8).tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    shard = Shard(path)
    assert shard.row(36).captions == rows()[3].captions
    with pytest.raises(DataError, match=r"train-00002\.arrow is missing or damaged \(the row of position 35 does not"):
        shard.row(35)
    with pytest.raises(DataError, match="the row of position 35"):
        shard.captions(35)


def test_a_shard_of_other_positions_is_refused(path: Path) -> None:
    with pytest.raises(DataError, match=r"train-00002\.arrow is missing or damaged \(position 7 is not in it\)"):
        Shard(path).row(7)


def test_shards_of_earlier_versions_are_read_without_checksums(path: Path) -> None:
    as_written = read(path)
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"index_crc32"}
    table = table.drop_columns(["crc32"]).replace_schema_metadata(metadata)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    assert read(path) == as_written


def test_a_flipped_byte_of_the_record_is_noticed(tmp_path: Path) -> None:
    values = {
        "image_tokenizer": {"fingerprint": "a1-b2-c3", "grid": [4, 4], "vocab_size": 32, "image_size": 32},
        "text_tokenizer": None,
        "source": {"kind": "shapes"},
        "transform": {"image_size": 32},
        **{"views": 2, "seed": 5, "shard_size": 16, "complete": True},
        "splits": {"train": {"positions": 40, "images": 39, "shards": 3}, "val": {"positions": 8}},
        "skipped": [{"split": "train", "position": 3, "name": "3.png", "cause": "cut off"}],
    }
    write_record(tmp_path, validate(CacheRecord, values, "test"))
    record, refusals = read_record(tmp_path), []
    for place in flipped(tmp_path / "cache.json", (0x01,), stride=2):
        try:
            assert read_record(tmp_path) == record, place
        except DataError as error:
            refusals.append(str(error))
    assert len(refusals) > 400
    assert not any("\n" in message for message in refusals)
    path = tmp_path / "cache.json"
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(DataError, match=r"does not have its checksum .* or remove the line crc32 if the change was"):
        read_record(tmp_path)
