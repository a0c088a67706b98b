"""What a data set passes over is told once, in few lines, and by every data set of a mixture."""

from typing import Any

from PIL import Image

from vqgan.data.source import Sample
from vqgan.data.sources.mixture import Mixture, MixtureStream
from vqgan.data.unused import EXAMPLES, LINES, Unused, unused_in, unused_lines

LINKS = Unused.of(["cats", "dogs"], "linked folders", "they lead round in a circle")
NOTES = Unused.of(["a.pdf"], "files ending in .pdf", "not images", lost=False)


class Source:
    """One item; passes over what it is given."""

    def __init__(self, *unused: Unused) -> None:
        self.unused = unused

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(Image.new("RGB", (2, 2)), None, str(index))


def test_a_line_says_how_many_of_what_for_which_reason_with_a_few_names() -> None:
    assert str(LINKS) == "2 linked folders (cats, dogs): they lead round in a circle"
    many = Unused.of([f"{number}.heic" for number in range(1234)], "files ending in .heic", "not read")
    assert len(many.examples) == EXAMPLES
    assert str(many) == "1,234 files ending in .heic (0.heic, 1.heic, 2.heic, ...): not read"


def test_what_both_splits_tell_is_told_once_and_possible_losses_come_first() -> None:
    assert unused_in(Source(NOTES, LINKS), Source(NOTES), object()) == (LINKS, NOTES)


def test_many_kinds_are_cut_to_a_few_lines_that_say_how_many_more_there_are() -> None:
    kinds = [Unused.of(["x"], f"files ending in .{number}", "not read") for number in range(LINES + 7)]
    lines = unused_lines(kinds)
    assert len(lines) == LINES + 1
    assert lines[-1] == "not used: 7 more kinds of things"
    assert len(unused_lines(kinds[:LINES])) == LINES
    assert unused_lines([]) == []


def test_a_mixture_tells_what_each_of_its_data_sets_passes_over() -> None:
    sources: Any = [Source(LINKS), Source(), Source(NOTES)]
    for mixture in (Mixture(sources, "abc", [1, 1, 1]), MixtureStream(sources, "abc", [1, 1, 1])):
        assert [unused.examples for unused in unused_in(mixture)] == [("a: cats", "a: dogs"), ("c: a.pdf",)]
