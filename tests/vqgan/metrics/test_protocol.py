"""No metric without its protocol, and no gap without its reason."""

import hashlib
from pathlib import Path

import pytest

from vqgan.metrics.protocol import AbsentMeter, Metric, package, table
from vqgan.system.checksums import file_sha256


def test_a_metric_has_a_value_or_a_reason() -> None:
    for value, missing in ((None, ""), (1.0, "no weights")):
        with pytest.raises(ValueError, match="psnr: a metric has a value or says what is missing"):
            Metric("psnr", value, "dB", "mean", missing=missing)


def test_json_carries_the_whole_protocol() -> None:
    metric = Metric("rfid", 1.5, "", "distance", {"evaluator": "x 1.0"}, warning="few")
    protocol = {"method": "distance", "evaluator": "x 1.0", "crop": "center"}
    assert metric.as_json({"crop": "center"}) == {"value": 1.5, "unit": "", "warning": "few", "protocol": protocol}
    (absent,) = AbsentMeter(["rfid"], "distance", "no weights").metrics()
    assert absent.as_json({}) == {
        "value": None,
        "unit": "",
        "missing": "no weights",
        "protocol": {"method": "distance"},
    }


def test_the_table_says_each_note_once() -> None:
    metrics = [
        Metric("psnr", 28.7612, "dB", "mean"),
        Metric("dead_codes", 12345, "", "never hit"),
        *AbsentMeter(["rfid", "inception_score"], "features", "fetch it").metrics(),
    ]
    assert table(metrics).splitlines() == [
        "  psnr             28.7612 dB  mean",
        "  dead_codes       12345       never hit",
        "  rfid             missing     features",
        "  inception_score  missing     features",
        "  rfid, inception_score: fetch it",
    ]


def test_hash_and_version(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    assert file_sha256(path) == hashlib.sha256(b"abc").hexdigest()
    name, version = package("torch").split(" ")
    assert (name, version.count(".") >= 2) == ("torch", True)
