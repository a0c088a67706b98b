"""Sheets hold what they were given: every image unharmed, every caption inside of its cell."""

import numpy as np
import pytest
from PIL import Image

from vqgan.contact_sheet import comparison_sheet, contact_sheet

COLORS = [(200, 10, 10), (10, 200, 10), (10, 10, 200), (200, 200, 10), (10, 200, 200)]
WHITE = (255, 255, 255)
LONG = "a small yellow triangle right of a large orange square and so on, word after word, without an end " * 4


def plain(color: tuple[int, int, int], width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def box_of(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (outside) of all pixels of exactly this color."""
    rows, columns = np.nonzero((np.asarray(sheet) == color).all(2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_small_images_are_enlarged_by_whole_pixels_on_a_regular_grid() -> None:
    sheet = contact_sheet([plain(color) for color in COLORS], columns=3)
    boxes = [box_of(sheet, color) for color in COLORS]
    for left, top, right, bottom in boxes:
        assert (right - left, bottom - top) == (192, 192)
    lefts, tops = [box[0] for box in boxes], [box[1] for box in boxes]
    assert lefts[:2] == lefts[3:]
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4]
    assert lefts[1] - lefts[0] == lefts[2] - lefts[1] > 192
    # The margins on the four sides are the same.
    assert boxes[0][0] == boxes[0][1] == sheet.width - boxes[2][2] == sheet.height - boxes[3][3]


def test_every_pixel_of_a_image_is_on_the_sheet() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for marks in (None, [True], [False]):
        sheet = np.asarray(contact_sheet([image], ["a caption"], marks=marks, scale=4))
        shown = sheet[24 : 24 + 64, 24 : 24 + 64]
        differs = (shown != np.asarray(image).repeat(4, 0).repeat(4, 1)).any(2)
        badge = 14  # only the verdict's badge reaches into an image's corner
        assert not differs[badge:].any()
        assert not differs[:, :-badge].any()
        assert marks or not differs.any()


@pytest.mark.parametrize(("side", "shown"), [(16, 176), (32, 192), (48, 192), (64, 192), (128, 128), (256, 256)])
def test_the_default_scale_shows_images_at_a_good_size(side: int, shown: int) -> None:
    left, _, right, _ = box_of(contact_sheet([plain((9, 9, 9), side, side)]), (9, 9, 9))
    assert right - left == shown


def test_scale_applies_and_all_images_share_it() -> None:
    sheet = contact_sheet([plain((9, 9, 9), 64, 32), plain((7, 7, 7), 16, 16)], scale=2)
    for color, size in (((9, 9, 9), (128, 64)), ((7, 7, 7), (32, 32))):
        left, top, right, bottom = box_of(sheet, color)
        assert (right - left, bottom - top) == size


def test_long_captions_wrap_inside_their_cell() -> None:
    images = [plain(color) for color in COLORS]
    for caption in (LONG, "x" * 300, "W" * 300):
        captions = ["", "", caption, "", ""]
        sheet, bare = contact_sheet(images, captions, columns=5), contact_sheet(images, columns=5)
        left, _, right, bottom = box_of(bare, COLORS[2])
        assert sheet.width == bare.width
        assert sheet.height > bare.height + 5 * 18
        text = (np.asarray(sheet)[bottom + 2 :] != WHITE).any(2)
        columns = np.flatnonzero(text.any(0))
        assert left <= columns.min() < left + 20
        assert right - 20 < columns.max() < right
        assert np.flatnonzero(text.any(1)).max() + bottom + 2 < sheet.height - 20


def test_a_row_is_as_high_as_its_longest_caption() -> None:
    images = [plain(color) for color in COLORS[:4]]
    short, long = (contact_sheet(images, [first, "b", "c", "d"], columns=2) for first in ("a", LONG))
    assert box_of(long, COLORS[1]) == box_of(short, COLORS[1])
    lower = box_of(long, COLORS[2])[1] - box_of(short, COLORS[2])[1]
    assert lower == long.height - short.height == 5 * 18


def test_marks_frame_images_in_green_and_red() -> None:
    images = [plain((90, 90, 90))] * 3
    sheet = np.asarray(contact_sheet(images, marks=[True, False, None], columns=3)).astype(int)
    row = sheet[24 + 96]  # through the middle of the images
    (green, red, gray) = (row[24 + index * (192 + 20) - 1] for index in range(3))
    assert green[1] > green[0] + 50
    assert green[1] > green[2] + 50
    assert red[0] > red[1] + 100
    assert red[0] > red[2] + 100
    assert gray.max() - gray.min() < 10


def test_fewer_images_than_columns_leave_no_empty_columns() -> None:
    assert contact_sheet([plain((9, 9, 9))], columns=8).width == contact_sheet([plain((9, 9, 9))], columns=1).width


def test_other_modes_become_rgb() -> None:
    for mode in ("L", "RGBA", "P", "1"):
        assert contact_sheet([Image.new(mode, (8, 8))]).mode == "RGB"


def test_pairs_stand_side_by_side_below_their_labels() -> None:
    pairs = [(plain(COLORS[0]), plain(COLORS[1])), (plain(COLORS[2]), plain(COLORS[3]))]
    sheet = comparison_sheet([*pairs, (plain(COLORS[4]), plain((1, 2, 3)))], columns=2)
    first, second, third, fourth, fifth, sixth = (box_of(sheet, color) for color in [*COLORS, (1, 2, 3)])
    assert first[1::2] == second[1::2] == third[1::2] == fourth[1::2]
    inside, between = second[0] - first[2], third[0] - second[2]
    assert 0 < inside < between
    assert fourth[0] - third[2] == inside
    assert fifth[0] == first[0]
    assert sixth[0] == second[0]
    assert fifth[1] > first[3]
    pixels = np.asarray(sheet)
    for left, top, right, _ in (first, second, third, fourth):
        assert (pixels[: top - 1, left:right] != WHITE).any(), "no label above"


def test_labels_are_what_was_given() -> None:
    pairs = [(plain((9, 9, 9)), plain((7, 7, 7)))]
    assert np.array_equal(comparison_sheet(pairs), comparison_sheet(pairs, ("original", "reconstruction")))
    assert not np.array_equal(comparison_sheet(pairs), comparison_sheet(pairs, ("before", "after")))


def test_what_does_not_fit_together_is_an_error() -> None:
    images = [plain((9, 9, 9))] * 3
    with pytest.raises(ValueError, match="2 captions for 3 images: give each image one, or none at all"):
        contact_sheet(images, ["a", "b"])
    with pytest.raises(ValueError, match="0 captions for 3 images"):
        contact_sheet(images, [])
    with pytest.raises(ValueError, match="4 marks for 3 images"):
        contact_sheet(images, marks=[True] * 4)
    with pytest.raises(ValueError, match="at least one image, received none"):
        contact_sheet([])
    with pytest.raises(ValueError, match="at least one image, received none"):
        comparison_sheet([])
    with pytest.raises(ValueError, match="at least one column, received 0"):
        contact_sheet(images, columns=0)
    with pytest.raises(ValueError, match="whole number from 1 on, received 0"):
        contact_sheet(images, scale=0)
