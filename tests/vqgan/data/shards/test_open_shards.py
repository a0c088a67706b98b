"""Tar shards: what makes a sample, the index, the split, partitions, resuming, and archives that are broken or
hostile."""

import gzip
import io
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from tests.vqgan.data.tiny_shards import encoded, names, shades, told, write_shades, write_shard
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.shards import index as index_module
from vqgan.data.shards.indexed import Shards
from vqgan.data.shards.open_shards import open_shards
from vqgan.data.shards.remote import LocalFile
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.shards.streamed import ShardStream
from vqgan.data.shards.tar import groups, members
from vqgan.data.source import DataError, Sample, Split, UnusableSample
from vqgan.data.split import hash_score


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def indexed(split: Split = "train", require_captions: bool = False, **fields: Any) -> Shards:
    source = open_shards(ShardsConfig(**fields), split, require_captions=require_captions)
    assert isinstance(source, Shards)
    return source


def streamed(split: Split = "train", require_captions: bool = False, **fields: Any) -> ShardStream:
    source = open_shards(ShardsConfig(streaming=True, **fields), split, require_captions=require_captions)
    assert isinstance(source, ShardStream)
    return source


def everything(source: Shards) -> list[str]:
    found = []
    for index in range(len(source)):
        try:
            found.append(str(source[index].caption))
        except UnusableSample as unusable:
            found.append(str(unusable))
    return found


def pipeline(batch_size: int = 8, **fields: Any) -> DataPipeline:
    settings = {name: fields.pop(name) for name in ("partitions", "workers") if name in fields}
    transform = TransformConfig(image_size=4, flip=True)
    return DataPipeline(
        DataConfig(source=ShardsConfig(**fields), transform=transform, batch_size=batch_size, **settings), seed=3
    )


def captions(data: DataPipeline, steps: int, first: int = 0, share: BatchShard = BatchShard()) -> list[list[str]]:  # noqa: B008
    return [
        [str(caption) for batch in batches for caption in batch.captions]
        for batches in data.training_batches(first, steps, share)
    ]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_sample_of_a_shard_is_found_in_all_forms_of_tar(tmp_path: Path, form: int) -> None:
    long = "a" * 90 + "/" + "b" * 90 + "-ü"
    content = [*shades(range(3)), (f"{long}.png", encoded(3)), (f"{long}.txt", b"shade 3"), ("__read me__", b"x")]
    if form == tarfile.USTAR_FORMAT:
        content = [(name.replace("-ü", ""), data) for name, data in content]
    path = write_shard(tmp_path / "a.tar", content, form)
    with tarfile.open(path, "a", format=form) as file:
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
    val = (str(path),)
    other = str(write_shard(tmp_path / "b.tar", shades([9])))
    source = indexed("val", path=other, val_paths=val)
    assert everything(source) == [f"shade {number}" for number in range(4)]
    assert told(streamed("val", path=other, val_paths=val).iterate()) == everything(source)
    assert [source.captions(index) for index in range(4)] == [(f"shade {number}",) for number in range(4)]
    sample = source[3]
    assert sample.name.startswith("a.tar/aaa")
    assert sample.image.getpixel((0, 0)) == (3, 3, 3)


def test_which_members_count(tmp_path: Path) -> None:
    content = [
        ("./x/1.PNG", encoded(1)),
        ("./x/1.jpg", encoded(2)),
        ("./x/1.json", b'{"caption": ["", "one"], "other": 1}'),
        ("x/2.seg.png", encoded(3)),
        ("x/2.json", b"{"),
        ("x/3.png", encoded(4)),
        ("x/4.png", encoded(5)),
        ("x/4.png", encoded(6)),
    ]
    path = str(write_shard(tmp_path / "a.tar", content))
    other = str(write_shard(tmp_path / "b.tar", shades([9])))
    fields: dict[str, Any] = {
        "path": other,
        "val_paths": (path,),
        "caption_key": "json",
        "caption_field": "caption",
        "image_keys": ("png", "jpg"),
    }
    source = indexed("val", **fields)
    assert everything(source) == told(streamed("val", **fields).iterate())
    assert source[0].caption == "one"
    shades_found = []
    for index in (0, 2, 3, 4):
        pixel = source[index].image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        shades_found.append(pixel[0])
    assert shades_found == [1, 4, 5, 6]
    for require, cause in ((False, "a.tar/x/2: its caption file is not valid JSON"), (True, "a.tar/x/3: no caption")):
        found = everything(indexed("val", require_captions=require, **fields))
        assert cause in found
    (only,) = (
        item
        for item in everything(indexed("val", **(fields | {"caption_key": None, "caption_field": None})))
        if "x/2" in item
    )
    assert "no image: it has none of png, jpg" in only


def test_samples_are_those_that_the_library_datasets_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    content = []
    for number in range(6):
        sample = [*shades([number]), (f"{number:05d}.b.json", b"{}")]
        content += [(f"deep/{name}", data) for name, data in sample]
    path = str(write_shard(tmp_path / "a.tar", content))
    rows = list(datasets.load_dataset("webdataset", data_files=path, split="train", streaming=True))
    with LocalFile(path) as file:
        found = list(groups(members(file), lambda _: True, lambda _, member: file.read(member.size)))
    assert [group.key for group in found] == [row["__key__"] for row in rows]
    assert [group.parts["txt"].decode() for group in found] == [row["txt"] for row in rows]
    assert set(found[1].parts) == {"png", "txt", "b.json"} <= set(rows[1])


def test_val_by_key_is_the_same_choice_with_and_without_an_index(tmp_path: Path) -> None:
    path = write_shades(tmp_path, shards=4, each=25)
    fields = {"path": path, "val_fraction": 0.2}
    train, val = everything(indexed(**fields)), everything(indexed("val", **fields))
    assert sorted(train + val) == names(range(100))
    assert 8 <= len(val) <= 35
    assert sorted(told(streamed(**fields).iterate())) == sorted(train)
    assert sorted(told(streamed("val", **fields).iterate())) == sorted(val)
    write_shard(tmp_path / "train-004.tar", shades(range(100, 120)))
    assert set(val) <= set(everything(indexed("val", path=str(tmp_path), val_fraction=0.2)))


def test_an_index_is_kept_and_believed_only_while_the_shard_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shard(tmp_path / "a.tar", shades(range(20)))
    first = everything(indexed(path=str(path)))
    scans: list[str] = []
    scan = index_module._scanned
    monkeypatch.setattr(index_module, "_scanned", lambda path: scans.append(path) or scan(path))
    assert everything(indexed(path=str(path))) == first
    assert scans == []
    write_shard(path, shades(range(30)))
    assert len(everything(indexed(path=str(path)))) > len(first)
    os.utime(path, ns=(1, 1))
    everything(indexed(path=str(path)))
    assert len(scans) == 2
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    kept.write_bytes(b"rubbish")
    everything(indexed(path=str(path)))
    assert len(scans) == 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(path / "not a folder"))
    assert len(indexed(path=str(path))) == len(indexed(path=str(path)))


def test_shards_are_read_by_threads_and_forked_workers_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vqgan.data.shards import indexed as module

    monkeypatch.setattr(module, "_OPEN_SHARDS", 2)
    path = write_shades(tmp_path, shards=5, each=10)
    source = indexed(path=path)
    alone = everything(source)
    with ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(lambda index: source[index % len(source)].caption, range(4 * len(source))))
    assert threads == alone * 4
    assert captions(pipeline(path=path, workers=2), 4) == captions(pipeline(path=path), 4)


def test_sources_travel_to_workers_that_are_not_forked(tmp_path: Path) -> None:
    path = write_shades(tmp_path, shards=2, each=5)
    source, stream = indexed(path=path), streamed(path=path)
    assert everything(pickle.loads(pickle.dumps(source))) == everything(source)
    assert told(pickle.loads(pickle.dumps(stream)).iterate()) == told(stream.iterate())


def test_resuming_indexed_and_streamed_shards(tmp_path: Path) -> None:
    path = write_shades(tmp_path, shards=5, each=9)
    for streaming in (False, True):
        data = pipeline(path=path, streaming=streaming, partitions=4, shuffle_buffer=3)
        whole = captions(data, 14)
        for first in (1, 5, 9, 13):
            assert captions(data, 14, first) == whole[first:]


def test_a_stream_resumes_alike_whether_it_knows_the_shards_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shades(tmp_path, shards=6, each=7)
    stream = streamed(path=path, shuffle_buffer=2)
    first_run = [told(islice(stream.partition(partition, 2, 0, 17), 43)) for partition in range(2)]
    assert stream.count(stream.shards[0]) == sum(hash_score(f"{number:05d}") >= 0.05 for number in range(7))
    whole = [told(islice(stream.partition(partition, 2, 0), 60)) for partition in range(2)]
    assert first_run == [row[17:] for row in whole]
    read: list[str] = []
    samples = ShardStream._samples
    monkeypatch.setattr(
        ShardStream, "_samples", lambda self, shard, *rest: read.append(shard) or samples(self, shard, *rest)
    )
    for start in range(25):
        read.clear()
        assert [told(islice(stream.partition(partition, 2, 0, start), 3)) for partition in range(2)] == [
            row[start : start + 3] for row in whole
        ]
        assert len(read) <= 4
    write_shard(tmp_path / "train-000.tar", shades(range(3)))
    assert stream.count(stream.shards[0]) is None


@pytest.mark.parametrize("shards", [1, 3, 4, 7])
def test_nothing_is_seen_twice_or_dropped_by_two_processes(tmp_path: Path, shards: int) -> None:
    path = write_shades(tmp_path, shards, each=84 // shards)
    write_shard(tmp_path / "held" / "out.tar", shades([200]))
    data = pipeline(
        path=path, val_paths=(str(tmp_path / "held"),), streaming=True, partitions=4, batch_size=4, shuffle_buffer=5
    )
    processes = [captions(data, 40, share=BatchShard(rank, 2)) for rank in range(2)]
    assert [one + other for one, other in zip(*processes, strict=True)] == captions(data, 40)
    lengths = (18, 18, 24, 24) if shards == 7 else (21,) * 4
    first_epoch = [
        processes[partition // 2][step][partition % 2] for partition in range(4) for step in range(lengths[partition])
    ]
    assert sorted(first_epoch) == names(range(84))


def test_processes_and_workers_change_nothing_in_a_stream(tmp_path: Path) -> None:
    write_shades(tmp_path, shards=5, each=12)
    fields = {"path": str(tmp_path), "streaming": True, "partitions": 4, "shuffle_buffer": 4}
    alone = [batch for (batch,) in pipeline(**fields).training_batches(2, 9, BatchShard())]
    helped = [batch for (batch,) in pipeline(workers=2, **fields).training_batches(2, 9, BatchShard())]
    shares = [pipeline(**fields).training_batches(2, 9, BatchShard(rank, 2)) for rank in range(2)]
    for wanted, workers, ((first,), (second,)) in zip(alone, helped, zip(*shares, strict=True), strict=True):
        assert wanted.names == workers.names == first.names + second.names
        assert torch.equal(wanted.images, workers.images)
        assert torch.equal(wanted.images, torch.cat([first.images, second.images]))


def test_workers_and_processes_read_only_their_own_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_shades(tmp_path, shards=8, each=4)
    read: list[str] = []
    samples = ShardStream._samples
    monkeypatch.setattr(
        ShardStream, "_samples", lambda self, shard, *rest: read.append(shard) or samples(self, shard, *rest)
    )
    data = pipeline(path=path, streaming=True, partitions=4)
    by_rank = []
    for rank in range(2):
        read.clear()
        captions(data, 12, share=BatchShard(rank, 2))
        by_rank.append(set(read))
    assert [len(shards) for shards in by_rank] == [4, 4]
    assert not by_rank[0] & by_rank[1]


def test_partitions_that_do_not_fit_are_one_clear_error(tmp_path: Path) -> None:
    path = write_shades(tmp_path, shards=2, each=60)
    data = pipeline(path=path, streaming=True, batch_size=24, partitions=8)
    with pytest.raises(
        DataError, match=r"data\.partitions 8 makes 8 partitions of a batch of 24.* 3 processes x 1 .*partitions to 6"
    ):
        captions(data, 1, share=BatchShard(0, 3))
    with pytest.raises(DataError, match=r"2 processes x 6 micro-batches of 4; set data\.partitions to 4"):
        captions(data, 1, share=BatchShard(0, 2, 6))
    with pytest.raises(DataError, match=r"partition \d of the stream has no items; lower data\.partitions"):
        captions(pipeline(path=str(write_shard(tmp_path / "x.tar", shades(range(2)))), streaming=True), 1)


def test_a_shard_cut_in_half_gives_its_first_half_and_says_so(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", shades(range(10)))
    whole = path.read_bytes()
    other = str(write_shard(tmp_path / "b.tar", shades([99])))
    for cut, cause in (
        (5 * 2048 + 512 + 30, "cut off in '00005.png'"),
        (5 * 2048 + 1024, "without an archive's end mark"),
        (5 * 2048 + 1024 + 100, "cut off in a header"),
        (5 * 2048 + 1024 + 512, "cut off in '00005.txt'"),
    ):
        path.write_bytes(whole[:cut])
        fields: dict[str, Any] = {"path": other, "val_paths": (str(path),)}
        for found in (everything(indexed("val", **fields)), told(streamed("val", **fields).iterate())):
            assert found[:5] == [f"shade {number}" for number in range(5)]
            (lost,) = found[5:]
            assert lost.startswith("a.tar after sample 5: the rest of the shard is lost: ")
            assert cause in lost


def test_what_is_not_an_archive_is_named(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "a.tar", shades(range(10)))
    damaged = bytearray(good.read_bytes())
    damaged[3 * 2048 + 20] ^= 1
    (tmp_path / "b.tar").write_bytes(damaged)
    (tmp_path / "c.tar").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "d.tar").write_bytes(b"")
    found = everything(indexed(path=str(tmp_path)))
    shown = found + everything(indexed("val", path=str(tmp_path)))
    assert sum("shade" in item for item in shown) == 10 + 2
    for cause in (
        "b.tar after sample 2: the rest of the shard is lost: no valid tar header at byte 6144: bad checksum",
        "c.tar: nothing could be read: it is compressed: unpack it with gunzip",
        "d.tar: nothing could be read: it ends without",
    ):
        assert any(item.startswith(cause) for item in found), cause
    stream = streamed("val", path=str(good), val_paths=(str(tmp_path / "[cd].tar"),))
    assert told(stream.iterate()) == [item for item in found if item.startswith(("c.tar", "d.tar"))]


def test_a_shard_cut_in_the_header_of_a_long_name(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", [(f"{'x' * 120}.png", encoded(1))], tarfile.GNU_FORMAT)
    path.write_bytes(path.read_bytes()[: 512 + 50])
    other = str(write_shard(tmp_path / "b.tar", shades([99])))
    assert told(streamed("val", path=other, val_paths=(str(path),)).iterate()) == [
        "a.tar: nothing could be read: cut off in a header at byte 562"
    ]


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "a\\..\\x.png"])
def test_a_name_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    path = write_shard(tmp_path / "a.tar", [*shades([1]), (name, encoded(2)), *shades([3])])
    fields: dict[str, Any] = {"path": str(write_shard(tmp_path / "b.tar", shades([9]))), "val_paths": (str(path),)}
    for found in (everything(indexed("val", **fields)), told(streamed("val", **fields).iterate())):
        assert [found[0], found[2]] == ["shade 1", "shade 3"]
        assert "refused: " in found[1]
        assert "leads out of the data set's folder" in found[1]


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        file.addfile(link_target := tarfile.TarInfo("1.txt"), io.BytesIO())
        assert link_target.size == 0
    fields: dict[str, Any] = {"path": str(write_shard(tmp_path / "b.tar", shades([9]))), "val_paths": (str(path),)}
    (found,) = told(streamed("val", **fields).iterate())
    assert "'1.png' is a link or a device, not a file" in found


def test_a_shard_that_changes_while_it_is_used(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", shades(range(9)))
    source = indexed(path=str(path))
    assert isinstance(source[len(source) - 1], Sample)
    os.truncate(path, 700)
    with pytest.raises(UnusableSample, match="it became shorter while it was in use"):
        source[len(source) - 1]


def test_broken_items_in_a_run_are_replaced_and_counted(tmp_path: Path) -> None:
    content = shades(range(40))
    content[6] = (content[6][0], content[6][1][:40])
    path = write_shard(tmp_path / "a.tar", content)
    for streaming in (False, True):
        data = pipeline(path=str(path), streaming=streaming, partitions=2, val_fraction=1e-9)
        batches = [batch for (batch,) in data.training_batches(0, 5, BatchShard())]
        assert all(len(batch) == 8 for batch in batches)
        (skipped,) = {str(item) for batch in batches for item in batch.skipped}
        assert skipped.startswith("a.tar/00003: not an image in a known format")


def test_mistakes_are_one_line_with_a_remedy(tmp_path: Path) -> None:
    path = write_shades(tmp_path, shards=2, each=3)

    def opening(require_captions: bool = False, **fields: Any) -> str:
        with pytest.raises(DataError) as caught:
            open_shards(ShardsConfig(**fields), "train", require_captions=require_captions)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no shards: set path" in opening()
    assert "3 of 5 shards do not exist, the first" in opening(path=path.replace("001}", "004}"))
    assert "no shard at" in opening(path=str(tmp_path / "*.tgz"))
    assert "named twice" in opening(path=path, paths=(str(tmp_path / "train-001.tar"),))
    assert "is in path and in val_paths" in opening(path=path, val_paths=(str(tmp_path / "train-001.tar"),))
    assert "names no shard or too many" in opening(path=str(tmp_path / "{5..1}.tar"))
    assert "neither a range as in {000..127} nor a list" in opening(path=str(tmp_path / "{5-1}.tar"))
    assert "web server does not list its files" in opening(path="http://127.0.0.1/a-*.tar")
    assert "none of gif is in them; check image_keys" in opening(path=path, image_keys=("gif",))
    assert "put them into a .cap member" in opening(True, path=path, caption_key="cap")
    assert "caption_key is null" in opening(True, path=path, caption_key=None)
    assert "set caption_key to json" in opening(path=path, caption_field="caption")


def test_braces_stand_for_what_a_shell_makes_of_them() -> None:
    from vqgan.data.shards.names import expand_braces

    assert list(expand_braces("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(expand_braces("{x,y}/{9..10}")) == ["x/9", "x/10", "y/9", "y/10"]
    assert list(expand_braces("{a,b{1..2}}")) == ["a", "b1", "b2"]
    assert list(expand_braces("plain")) == ["plain"]
