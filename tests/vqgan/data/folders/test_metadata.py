"""Every row of metadata is an item, an error or told, and names are found as other systems write them."""

import csv
import json
import re
import unicodedata
from pathlib import Path

import pytest

from tests.vqgan.data.image_folders import draw, outcomes, told, write
from vqgan.data.folders.metadata import MAX_LINE, read_metadata
from vqgan.data.source import DataError
from vqgan.data.sources.folder import Folder, FolderConfig


def csv_of(*rows: str) -> str:
    return "\n".join(["file_name,text", *rows, ""])


def refusal(path: Path, text: str) -> str:
    write(path, text)
    with pytest.raises(DataError) as caught:
        read_metadata(path, require_captions=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        (['0.png,"Hello said the cat', "1.png,b", "2.png,c"], "line 2: .* swallows line 3 .* line 4"),
        (["0.png,a", '1.png,"b', '2.png,"c"', "3.png,d"], "line 3: .* swallows line 4"),
        (["0.png,a", '1.png,"b', '2.png,c "', "3.png,d"], "line 3: .* swallows line 4 .* line 4"),
        (["0.png,a", '1.png,"b', "sub/2.JPG,c", '3.png,"'], "line 3: .* swallows line 4 .* line 5"),
        (['"0.png,a', "1.png,b", "2.png,c"], "line 2: .* swallows line 3"),
    ],
)
def test_a_quotation_mark_that_nobody_closes_is_named_by_its_line(tmp_path: Path, rows: list[str], where: str) -> None:
    assert re.search(where, refusal(tmp_path / "metadata.csv", csv_of(*rows)))


def test_quotation_marks_that_swallow_nothing_are_text(tmp_path: Path) -> None:
    rows = ['0.png,say "hi', '1.png,"one\nof two, lines"', '2.png,"a ""quoted"" word"', '3.png,"open at the end']
    write(tmp_path / "metadata.csv", csv_of(*rows).rstrip("\n"))
    texts = [row.text for row in read_metadata(tmp_path / "metadata.csv", require_captions=True).rows]
    assert texts == ['say "hi', "one\nof two, lines", 'a "quoted" word', "open at the end"]


def test_a_list_whose_names_stand_behind_the_texts(tmp_path: Path) -> None:
    for middle in ("a dog,1.png", "a dog, brown,1.png"):
        text = f'text,file_name\n"a cat,0.png\n{middle}\na cow ",2.png\n'
        assert "line 2: a quotation mark that opens here swallows line 3" in refusal(tmp_path / "metadata.csv", text)


def test_a_long_cell_is_a_caption_and_the_limit_of_others_stays_as_it_was(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / f"{number}.png")
    write(tmp_path / "metadata.csv", csv_of("0.png,a", f"1.png,{'word ' * 40_000}", f"2.png,{'x' * 1_100_000}"))
    before = csv.field_size_limit()
    found = outcomes(tmp_path)
    assert csv.field_size_limit() == before
    assert found["0.png"] == "a"
    assert len(str(found["1.png"])) == 199_999
    assert found["2.png"] == "its caption has more than 1,000,000 characters"
    assert f"line 2 is longer than {MAX_LINE:,}" in refusal(
        tmp_path / "metadata.csv", csv_of("0.png," + "x" * MAX_LINE)
    )
    assert csv.field_size_limit() == before


def test_cells_beyond_the_header_are_told_and_two_columns_of_one_name_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    write(tmp_path / "metadata.csv", csv_of("a.png,a cat, sitting", "b.png,a dog,,"))
    assert outcomes(tmp_path) == {"a.png": "a cat", "b.png": "a dog"}
    assert told(tmp_path) == {"rows of metadata.csv with more cells than its header": (1, True)}
    assert "two columns 'text'" in refusal(tmp_path / "metadata.csv", "file_name,text,text\na.png,a,b\n")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_from_other_systems(tmp_path: Path, form: str) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    name = unicodedata.normalize(form, "bär/crème [1].png")  # type: ignore[arg-type]
    draw(tmp_path / name)
    draw(tmp_path / "imgs" / "IMG_1.JPG")
    draw(tmp_path / "plain.png")
    rows = [unicodedata.normalize(other, name).replace("/", "\\"), ".\\imgs\\img_1.jpg", "./plain.png"]  # type: ignore[arg-type]
    write(tmp_path / "metadata.jsonl", "\n".join(json.dumps({"file_name": row, "text": row}) for row in rows))
    assert outcomes(tmp_path) == dict(zip((name, "imgs/IMG_1.JPG", "plain.png"), rows, strict=True))
    assert told(tmp_path) == {}
    (tmp_path / "metadata.jsonl").unlink()
    text = unicodedata.normalize(other, name).replace(".png", ".TXT")  # type: ignore[arg-type]
    write(tmp_path / text, "a bear")
    found = outcomes(tmp_path)
    # The folder is another one by its bytes, so this file is of no image of its own folder but is meant for it.
    assert found[name] == "a bear"


def test_a_name_that_is_there_is_that_file_whatever_else_it_could_mean(tmp_path: Path) -> None:
    for name in ("a.png", "A.png", "b\\c.png", "b/c.png"):
        draw(tmp_path / name)
    write(
        tmp_path / "metadata.csv", csv_of("a.png,low", "A.png,high", "b\\c.png,slash", "b/c.png,folder", "B.png,none")
    )
    found = outcomes(tmp_path)
    assert found == {
        "a.png": "low",
        "A.png": "high",
        "b\\c.png": "slash",
        "b/c.png": "folder",
        "B.png": "the file is missing",
    }
    draw(tmp_path / "d.png")
    write(tmp_path / "metadata.csv", csv_of("d.png,this", "D.png,another"))
    assert outcomes(tmp_path) == {"d.png": "this", "D.png": "the file is missing"}, "one file, one row"
    write(tmp_path / "metadata.csv", csv_of("a.PNG,which"))
    assert "the file is missing" in outcomes(tmp_path).values(), "two files differ alike: none is meant"


def test_the_share_that_is_val_is_the_same_for_composed_and_decomposed_names(tmp_path: Path) -> None:
    val = []
    for form in ("NFC", "NFD"):
        for number in range(40):
            draw(tmp_path / form / unicodedata.normalize(form, f"ä{number}.png"))  # type: ignore[arg-type]
        names = outcomes(tmp_path / form, "val")
        val.append({unicodedata.normalize("NFC", name) for name in names})
    assert val[0] == val[1]


def test_one_list_in_each_subfolder(tmp_path: Path) -> None:
    for name in ("cats/1.png", "cats/deep/2.png", "dogs/1.png", "birds/1.png", "cats/unlisted.png"):
        draw(tmp_path / name)
    write(tmp_path / "cats" / "metadata.csv", csv_of("1.png,a cat", "deep/2.png,a kitten", "../dogs/1.png,no"))
    write(tmp_path / "dogs" / "Metadata.JSONL", json.dumps({"file_name": "1.png", "text": "a dog"}))
    write(tmp_path / "birds" / "1.txt", "a bird")
    assert outcomes(tmp_path, require_captions=True) == {
        "cats/1.png": "a cat",
        "cats/deep/2.png": "a kitten",
        "cats/../dogs/1.png": "refused: it leads out of the data set's folder",
        "dogs/1.png": "a dog",
        "birds/1.png": "a bird",
    }
    assert told(tmp_path) == {"images that no row of metadata lists": (1, True)}


def test_lists_in_the_subfolders_of_splits(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        draw(tmp_path / split / "cats" / "1.png")
        write(tmp_path / split / "cats" / "metadata.csv", csv_of(f"1.png,{split}"))
    write(tmp_path / "elsewhere" / "metadata.csv", "not,what\nit,says\n")
    assert outcomes(tmp_path, "train") == {"cats/1.png": "train"}
    assert outcomes(tmp_path, "val") == {"cats/1.png": "valid"}


def test_the_nearest_list_wins_and_rows_that_say_nothing_new_are_told(tmp_path: Path) -> None:
    for name in ("a.png", "cats/1.png"):
        draw(tmp_path / name)
    rows = ["a.png,one", "a.png,one", "./a.png,one", "cats/1.png,of the top", "cats/2.png,gone"]
    write(tmp_path / "metadata.csv", csv_of(*rows))
    write(tmp_path / "metadata.jsonl", json.dumps({"file_name": "a.png", "text": "other"}))
    write(tmp_path / "cats" / "metadata.csv", csv_of("1.png,of its own"))
    assert outcomes(tmp_path) == {"a.png": "one", "cats/1.png": "of its own", "cats/2.png": "the file is missing"}
    assert told(tmp_path) == {
        "further metadata files": (1, True),
        "rows of metadata that repeat another": (2, False),
        "rows for files that a nearer metadata file lists": (1, False),
    }


def test_several_captions_in_several_rows_are_several_items(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    rows = [{"file_name": "a.png", "text": text} for text in ("one", "two", ["one", "two"], "one")]
    write(
        tmp_path / "metadata.jsonl",
        "\ufeff" + "\r\n".join(map(json.dumps, [*rows, {"file_name": "b.png"}])) + "\r\n\r\n",
    )
    sources = [Folder(FolderConfig(path=str(tmp_path)), split) for split in ("train", "val")]  # type: ignore[arg-type]
    captions = [[source.captions(index) for index in range(len(source))] for source in sources]
    assert sorted(map(len, captions)) == [1, 3], "all of one image on one side"
    assert sorted(caption for side in captions for caption in side) == [(), ("one",), ("one",), ("two",)]
    assert told(tmp_path) == {"rows of metadata that repeat another": (1, False)}


def test_caption_files_that_metadata_takes_the_place_of_are_told(tmp_path: Path) -> None:
    for name in "ab":
        draw(tmp_path / f"{name}.png")
        write(tmp_path / f"{name}.txt", "from the file")
    write(tmp_path / "metadata.csv", csv_of("a.png,one", "b.png,two"))
    assert told(tmp_path) == {"caption files": (2, False)}
    write(tmp_path / "metadata.csv", "file_name\na.png\nb.png\n")
    assert told(tmp_path) == {"caption files": (2, True)}, "then nothing has a caption"


def test_a_row_may_name_a_file_of_any_ending_or_below_a_link(tmp_path: Path) -> None:
    draw(tmp_path / "store" / "a.png")
    root = tmp_path / "set"
    draw(root / "photo.dat")
    draw(root / ".hidden" / "b.png")
    (root / "linked").symlink_to(tmp_path / "store")
    write(root / "metadata.csv", csv_of("photo.dat,one", "linked/a.png,two", ".hidden/b.png,three"))
    assert outcomes(root) == {"photo.dat": "one", "linked/a.png": "two", ".hidden/b.png": "three"}
    assert told(root) == {}
