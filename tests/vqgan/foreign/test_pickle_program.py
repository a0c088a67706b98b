"""A pickle read as data: containers as `pickle` builds them, and nothing that a file names is looked up or called."""

import io
import pickle
import sys
import types
from typing import Any

import pytest

from vqgan.foreign.pickle_program import Global, PickleRefusedError, read_pickle


def test_even_the_names_on_the_list_are_never_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of a package on the list, which is really there: `pickle` calls it, we do not."""
    module, calls = types.ModuleType("omegaconf"), []
    module.run = lambda *words: calls.append(words)  # type: ignore[attr-defined]
    module.run.__module__, module.run.__qualname__ = "omegaconf", "run"
    monkeypatch.setitem(sys.modules, "omegaconf", module)

    class Run:
        def __reduce__(self) -> Any:
            return module.run, ("harm",)

    data = pickle.dumps(Run(), protocol=2)
    pickle.loads(data)
    assert calls == [("harm",)]
    result = read_pickle(io.BytesIO(data))
    assert calls == [("harm",)]
    assert (result.name, result.arguments) == ("omegaconf.run", ("harm",))


@pytest.mark.parametrize(
    "program",
    [
        *(b"cposix\nsystem\n(S'true'\ntR.", b"(S'true'\niposix\nsystem\n.", b"(cposix\nsystem\nS'true'\no."),
        *(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", b"\x80\x02cposix\nsystem\n)\x81."),
        *(b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\x00\x00\x00.", b"\x97."),
    ],
)
def test_every_way_of_naming_is_refused(program: bytes) -> None:
    with pytest.raises(PickleRefusedError, match=r"posix\.system|the pickle operation (EXT\d|NEXT_BUFFER)"):
        read_pickle(io.BytesIO(program))


def test_a_name_with_line_breaks_stays_one_line() -> None:
    with pytest.raises(PickleRefusedError, match=r"asks for 'os\\x1b\[2J\\nfine\.system'") as error:
        read_pickle(io.BytesIO(b"\x80\x04\x8c\x0bos\x1b[2J\nfine\x8c\x06system\x93."))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "program",
    [b".", b"", b"K\x01", b"0.", b"R.", b"}s.", b"(", b"h\x05.", b"\x86.", b"t.", b"K\x01K\x02a.", b"K\x01)R."],
)
def test_a_program_that_makes_no_sense(program: bytes) -> None:
    with pytest.raises(PickleRefusedError, match="not a complete pickle"):
        read_pickle(io.BytesIO(program))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_are_what_pickle_gives(protocol: int) -> None:
    content = {
        "none": [None, True, False, 0, -1, 255, 70000, 2**40, 2**80, 1.5, float("inf")],
        "text": ["", "é", "x" * 300, b"bytes", b"y" * 300],
        "nested": [(), (1,), (1, 2), (1, 2, 3), tuple(range(9)), [], {}, {"a": {"b": [1]}}, {1: 2, None: 3}],
        "shared": [[1]] * 2,
    }
    if protocol < 3:
        content["text"] = ["", "é"]  # bytes are a call of _codecs.encode there
    assert read_pickle(io.BytesIO(pickle.dumps(content, protocol))) == content


def test_names_are_kept_as_text() -> None:
    name = read_pickle(io.BytesIO(b"ctorch\nFloatStorage\n."))
    assert isinstance(name, Global)
    assert name.name == "torch.FloatStorage"
