"""Shards from a web server that drops connections, answers errors, stalls, crawls: never silent, never a hang."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.vqgan.data.tiny_shards import encoded, names, shades, told, write_shades, write_shard
from vqgan.data.images.transforms import TransformConfig
from vqgan.data.loader import BatchShard, DataConfig, DataPipeline
from vqgan.data.shards import remote
from vqgan.data.shards.open_shards import open_shards
from vqgan.data.shards.remote import RemoteError, RemoteFile
from vqgan.data.shards.samples import ShardsConfig
from vqgan.data.shards.streamed import ShardStream
from vqgan.data.source import DataError


class Server:
    """A web server over a folder. `faults` is asked for every request and may break it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges = True
        self.tag = "one"
        self.faults: Callable[[str, int], Any] = lambda _name, _request: None
        self.requests: list[tuple[str, int]] = []
        self.stopping = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.strip("/")
        wanted = request.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        number = sum(asked == name for asked, _ in self.requests)
        self.requests.append((name, start))
        fault = self.faults(name, number)
        if isinstance(fault, int) or not (self.folder / name).is_file():
            request.send_error(fault or 404)
            return
        content = (self.folder / name).read_bytes()
        request.send_response(206 if wanted and self.ranges else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.send_header("ETag", self.tag)
        request.end_headers()
        if fault is None:
            request.wfile.write(content[start:])
        else:
            fault(request.wfile, content[start:])
            request.wfile.flush()
            request.close_connection = True

    def close(self) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    server = Server(folder)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the reader wanted to wait before each new try."""
    waited: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", waited.append)
    return waited


def stream(server: Server, pattern: str = "train-{000..003}.tar", **fields: Any) -> ShardStream:
    write_shard(server.folder / "held.tar", shades([200]))
    settings = {"timeout": 5.0, "retries": 3, "val_paths": (f"{server.address}/held.tar",), **fields}
    source = open_shards(ShardsConfig(path=f"{server.address}/{pattern}", **settings), "train")
    assert isinstance(source, ShardStream)
    return source


def drop_after(count: int) -> Callable[[Any, bytes], None]:
    return lambda file, content: file.write(content[:count])


def test_a_sound_server_is_asked_once_for_each_shard(server: Server) -> None:
    write_shades(server.folder, shards=4, each=5)
    assert told(stream(server).iterate()) == [f"shade {number}" for number in range(20)]
    assert server.requests == [(f"train-00{number}.tar", 0) for number in range(4)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_dropped_connection_is_taken_up_where_it_broke(server: Server, pauses: list[float], ranges: bool) -> None:
    write_shades(server.folder, shards=4, each=5)
    server.ranges = ranges
    server.faults = lambda name, request: drop_after(3000) if name == "train-001.tar" and request < 2 else None
    assert told(stream(server).iterate()) == [f"shade {number}" for number in range(20)]
    asked = [start for name, start in server.requests if name == "train-001.tar"]
    assert asked == ([0, 3000, 6000] if ranges else [0, 0, 0])
    assert pauses == [0.5, 1.0]


def test_passing_errors_are_tried_again_and_lasting_ones_cost_the_shard(server: Server, pauses: list[float]) -> None:
    write_shades(server.folder, shards=4, each=5)
    (server.folder / "train-002.tar").unlink()
    answers = {"train-000.tar": [500, 503, 429], "train-001.tar": [500] * 99, "train-003.tar": [403] * 99}

    def fault(name: str, request: int) -> int | None:
        return answers[name][request] if request < len(answers.get(name, [])) else None

    server.faults = fault
    found = told(stream(server).iterate())
    assert found[:5] == [f"shade {number}" for number in range(5)]
    lost = "nothing could be read: the server answers"
    assert found[5:] == [
        f"train-001.tar: {lost} 500 Internal Server Error, at byte 0, given up after 4 tries",
        f"train-002.tar: {lost} 404 Not Found",
        f"train-003.tar: {lost} 403 Forbidden",
    ]
    assert pauses == [0.5, 1.0, 2.0] * 2
    assert len(server.requests) == 4 + 4 + 1 + 1


def test_who_waits_is_told_for_whom_once_a_shard(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    write_shades(server.folder, shards=3, each=5)
    server.faults = lambda name, request: (503, 500, None)[request] if name != "train-001.tar" else None
    told(stream(server, "train-{000..002}.tar").iterate())
    host = server.address.removeprefix("http://")
    line = f"waiting for {host} (the server answers 503 Service Unavailable), try 2 of 4\n"
    assert capsys.readouterr().err == line * 2


def test_the_line_of_a_wait_names_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RemoteError):
        RemoteFile("http://me:secret@127.0.0.1:9/a.tar", retries=1, timeout=1).read(1)
    said = capsys.readouterr().err
    assert said.startswith("waiting for 127.0.0.1:9 (")
    assert "secret" not in said


def test_a_server_that_always_drops_costs_the_rest_of_the_shard(server: Server) -> None:
    write_shades(server.folder, shards=4, each=5)
    server.faults = lambda name, _: drop_after(700) if name == "train-001.tar" else None
    found = told(stream(server).iterate())
    assert found[:6] == [f"shade {number}" for number in range(6)]
    assert found[6].startswith("train-001.tar after sample 1: the rest of the shard is lost: ")
    assert "at byte 2800, given up after 4 tries" in found[6]
    assert found[7:] == [f"shade {number}" for number in range(10, 20)]


def test_a_server_that_stalls_or_crawls_is_no_hang(server: Server) -> None:
    write_shades(server.folder, shards=2, each=5)

    sat_through: list[bool] = []

    def stall(file: Any, content: bytes) -> None:
        file.write(content[:1500])
        file.flush()
        sat_through.append(not server.stopping.wait(60))

    def crawl(file: Any, content: bytes) -> None:
        for byte in content:
            file.write(bytes([byte]))  # an error once nobody listens
            file.flush()
            if server.stopping.wait(0.02):
                return
        sat_through.append(True)

    for kind in (stall, crawl):
        server.requests.clear()
        server.faults = lambda name, request, kind=kind: kind if name == "train-000.tar" and request < 2 else None
        found = told(stream(server, "train-{000..001}.tar", timeout=0.2).iterate())
        assert found == [f"shade {number}" for number in range(10)]
        server.faults = lambda name, _, kind=kind: kind if name == "train-000.tar" else None
        found = told(stream(server, "train-{000..001}.tar", timeout=0.2, retries=1).iterate())
        assert sum("given up after 2 tries" in item for item in found) == 1
        assert found[-5:] == [f"shade {number}" for number in range(5, 10)]
        assert not sat_through, "the reader waited until the server was done"


def test_a_slow_reader_is_no_slow_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_SLOWEST", 10_000_000)
    write_shard(server.folder / "train-000.tar", [("a.bin", bytes(300_000)), *shades(range(3))])
    with RemoteFile(f"{server.address}/train-000.tar", retries=0, timeout=0.3) as file:
        received = 0
        while content := file.read(40_000):
            received += len(content)
            server.stopping.wait(0.1)
    assert received == (server.folder / "train-000.tar").stat().st_size
    assert len(server.requests) == 1


def test_progress_makes_a_broken_connection_a_new_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PROGRESS", 1000)
    write_shades(server.folder, shards=1, each=5)
    server.faults = lambda name, _: drop_after(1200) if name == "train-000.tar" else None
    assert told(stream(server, "train-000.tar", retries=1).iterate()) == [f"shade {number}" for number in range(5)]


def test_a_shard_that_changes_between_two_tries_is_not_pasted_together(server: Server) -> None:
    write_shades(server.folder, shards=1, each=5)

    def change(file: Any, content: bytes) -> None:
        file.write(content[:3000])
        server.tag = "two"

    server.faults = lambda _, request: change if request == 0 else None
    found = told(stream(server, "train-000.tar").iterate())
    assert found[0] == "shade 0"
    assert "it changed on the server while it was read" in found[-1]


def test_a_server_that_is_down_ends_the_run_with_one_line(server: Server) -> None:
    server.faults = lambda *_: 503
    source = stream(server, "train-{000..099}.tar", retries=1)
    with pytest.raises(
        DataError, match=r"nothing can be read of 5 shards in a row, the last 'http.*004\.tar': the serv"
    ):
        told(source.iterate())
    assert len(server.requests) == 10
    config = ShardsConfig(path=f"{server.address}/train-000.tar", val_paths=(f"{server.address}/held.tar",), retries=0)
    data = DataPipeline(
        DataConfig(source=config, transform=TransformConfig(image_size=4), batch_size=2, partitions=1), 0
    )
    with pytest.raises(DataError, match=r"unusable items in a row in a whole pass over a partition.*503"):
        list(data.training_batches(0, 3, BatchShard()))


def test_training_from_a_faulty_server_sees_what_a_sound_one_shows(server: Server) -> None:
    write_shades(server.folder, shards=5, each=12)
    write_shard(server.folder / "held.tar", shades([200]))

    def captions(workers: int, first: int = 0) -> list[list[str | None]]:
        config = ShardsConfig(
            path=f"{server.address}/train-{{000..004}}.tar",
            val_paths=(f"{server.address}/held.tar",),
            shuffle_buffer=4,
            timeout=5,
        )
        settings = {"transform": TransformConfig(image_size=4), "batch_size": 8, "partitions": 4, "workers": workers}
        batches = DataPipeline(DataConfig(source=config, **settings), 0).training_batches(first, 12, BatchShard())
        return [batch.captions for (batch,) in batches]

    sound = captions(workers=0)
    assert {caption for step in sound for caption in step} == set(names(range(60)))
    server.faults = lambda _, request: (503, drop_after(5000), None)[request % 3]
    server.requests.clear()
    assert captions(workers=0) == sound
    server.faults = lambda *_: None
    assert captions(workers=2) == sound
    assert captions(workers=0, first=7) == sound[7:]


def test_a_resumed_run_asks_for_the_size_of_what_it_has_seen_and_reads_only_the_rest(server: Server) -> None:
    write_shades(server.folder, shards=6, each=5)
    source = stream(server, "train-{000..005}.tar", shuffle_buffer=2)
    whole = told(islice(source.partition(0, 1, 0), 30))
    server.requests.clear()
    assert told(islice(source.partition(0, 1, 0, 22), 8)) == whole[22:]
    assert len(server.requests) == 5 + 2, "four shards are passed over, two are read"
    server.tag = "two"
    server.requests.clear()
    assert told(islice(source.partition(0, 1, 0, 22), 8)) == whole[22:]
    assert len(server.requests) == 1 + 6, "nothing is believed of a shard that has changed"


def test_broken_members_of_a_remote_shard_are_named(server: Server) -> None:
    content = [*shades(range(2)), ("../x.png", encoded(9)), ("a.png", b"no image"), *shades(range(2, 4))]
    path = write_shard(server.folder / "train-000.tar", content)
    path.write_bytes(path.read_bytes()[: 2048 * 4 + 700])
    found = told(stream(server, "train-000.tar").iterate())
    assert found[:2] == ["shade 0", "shade 1"]
    assert found[2] == "train-000.tar/../x: refused: '../x.png' leads out of the data set's folder"
    assert found[3].startswith("train-000.tar/a: not an image")
    assert "the rest of the shard is lost" in found[-1]


def test_what_no_patience_can_open() -> None:
    for address, cause in (("nosuchthing://x/y.tar", "cannot be opened"), ("memory://nothing.tar", "cannot be opened")):
        with pytest.raises(RemoteError, match=cause):
            RemoteFile(address, retries=2, timeout=1).read(10)


def test_other_addresses_are_opened_by_fsspec(tmp_path: Path) -> None:
    import fsspec

    path = write_shard(tmp_path / "a.tar", shades(range(6)))
    for shard in ("one", "two"):
        fsspec.filesystem("memory").pipe(f"/bucket/{shard}.tar", path.read_bytes())
    config = ShardsConfig(path="memory://bucket/o*.tar", val_paths=("memory://bucket/two.tar",))
    source = open_shards(config, "train")
    assert isinstance(source, ShardStream)
    assert told(islice(source.iterate(), 6)) == [f"shade {number}" for number in range(6)]
