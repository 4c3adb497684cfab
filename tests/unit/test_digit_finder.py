"""Digits found on pages: their number, order and form, whatever the light, the pen and the paper."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from pipeline.apps import digit_finder, images, mnist_form, stress_tests
from pipeline.base.errors import UserError
from pipeline.base.files import load_json

STROKES = ROOT / "reference" / "strokes.json"


def draw_page(rows, pen=8, size=120):
    """A page, uint8 [H, W], with rows of the project's own digits, each in a cell of its own."""
    hands = load_json(STROKES)
    page = np.full((size * len(rows), size * max(map(len, rows))), 225, np.uint8)
    for i, row in enumerate(rows):
        for j, digit in enumerate(row):
            hand = ("round", "slanted", "angular")[(i + j) % 3]
            cell = stress_tests.draw(hands[hand][digit], pen, size)
            page[i * size : (i + 1) * size, j * size : (j + 1) * size] = cell
    return page


def in_cells(result, rows, size=120):
    """The digits whose cells the boxes lie in, in the order of the boxes."""
    assert len(result.boxes) == sum(map(len, rows))
    read = []
    for box in result.boxes:
        row, column = (box.top + box.bottom) // 2 // size, (box.left + box.right) // 2 // size
        assert row * size <= box.top < box.bottom <= (row + 1) * size
        read.append(rows[row][column])
    return "".join(read)


ROWS = ["0123456789", "31415926", "2718281828"]


@pytest.mark.parametrize("pen", [3, 8, 14])
def test_digits_are_found_in_reading_order(pen):
    assert in_cells(digit_finder.find_digits(draw_page(ROWS, pen)), ROWS) == "".join(ROWS)


@pytest.mark.parametrize("light", ["even", "from one side", "a shadow's edge", "noise", "light on dark"])
def test_light_and_paper_change_neither_number_nor_form(light):
    plain = draw_page(ROWS)
    width = plain.shape[1]
    page = plain.astype(float)
    if light == "from one side":
        page *= np.linspace(1, 0.45, width)
    elif light == "a shadow's edge":
        page *= 0.55 + 0.45 / (1 + np.exp((np.arange(width) - width / 2) / 60))
    elif light == "noise":
        page += np.random.default_rng(0).normal(0, 8, page.shape)
    elif light == "light on dark":
        page = 255 - page
    result = digit_finder.find_digits(np.clip(page, 0, 255).astype(np.uint8))
    assert in_cells(result, ROWS) == "".join(ROWS)
    reference = digit_finder.find_digits(plain).digits
    moved = [np.roll(result.digits, by, (1, 2)).astype(int) for by in itertools.product((-1, 0, 1), repeat=2)]
    apart = np.min([np.abs(digits - reference).mean((1, 2)) for digits in moved], axis=0) / reference.mean((1, 2))
    assert np.median(apart) < 0.1 and apart.max() < 0.45  # of the ink: edges, and a pixel more or less in height


def test_a_photograph_taken_askew_is_read_line_by_line():
    tilted = ndimage.rotate(draw_page(ROWS), 4, reshape=True, cval=225, order=1)
    result = digit_finder.find_digits(tilted)
    centres = [((box.left + box.right) / 2, (box.top + box.bottom) / 2) for box in result.boxes]
    assert len(centres) == sum(map(len, ROWS))
    start = 0
    for row in ROWS:
        line = centres[start : start + len(row)]
        assert line == sorted(line)
        start += len(row)


@pytest.mark.slow
def test_a_digit_has_the_form_of_mnist():
    for page in stress_tests.drawn(STROKES)[0]:
        [digit] = digit_finder.find_digits(page).digits
        rows, columns = (np.flatnonzero((digit > 64).any(axis)) for axis in (1, 0))
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
        assert np.allclose(ndimage.center_of_mass(digit.astype(float)), 14, atol=0.75)
        assert digit.max() == 255
        assert len(np.unique(digit)) > 10  # its edges are smooth


def test_mnist_itself_stays_as_it_is():
    ink = np.zeros((20, 14))
    ink[2:20, 6:9] = 1
    ink[:3, :9] = 0.6
    field = mnist_form.centred(ink)
    again = digit_finder.find_digits(field).digits[0]
    assert np.abs(again.astype(int) - field).mean() < 4


@pytest.mark.slow
def test_a_thin_pen_is_widened_to_the_least_that_mnist_has_and_a_wide_one_left():
    widths = {}
    for pen in stress_tests.PENS:
        digits = [digit_finder.find_digits(page).digits[0] for page in stress_tests.drawn(STROKES, pen)[0][::4]]
        widths[pen] = np.mean([mnist_form.stroke_width(digit / 255) for digit in digits])
    assert 1.2 < widths["thin"] < 2.6 < widths["thick"]


def test_the_stroke_width_of_bars_is_theirs():
    for width in (4, 7, 12):
        bar = np.zeros((200, 60))
        bar[10:190, 20 : 20 + width] = 1
        assert mnist_form.stroke_width(bar) == pytest.approx(width, abs=1)


@pytest.mark.parametrize("grey", [60, 120])
@pytest.mark.parametrize("margins", [(60, 60, 60, 60), (150, 150, 150, 150), (0, 0, 0, 100), (0, 0, 0, 300)])
def test_a_sheet_on_a_table_is_read(grey, margins):
    top, left, bottom, right = margins
    page = draw_page(["01234", "56789"], size=240)
    table = np.full((page.shape[0] + top + bottom, page.shape[1] + left + right), grey, float)
    table[top : top + page.shape[0], left : left + page.shape[1]] = page
    table += np.random.default_rng(0).normal(0, 4, table.shape)
    result = digit_finder.find_digits(np.clip(table, 0, 255).astype(np.uint8))
    assert len(result.boxes) == 10


@pytest.mark.parametrize("digit", "178")
@pytest.mark.parametrize("margin", [12, 25])
def test_a_thick_digit_cut_out_tightly_is_one_digit(digit, margin):
    page = stress_tests.draw(load_json(STROKES)["round"][digit], 14, 300)
    rows, columns = (np.flatnonzero((page < 130).any(axis)) for axis in (1, 0))
    part = page[rows[0] - margin : rows[-1] + margin + 1, columns[0] - margin : columns[-1] + margin + 1]
    assert len(digit_finder.find_digits(part).boxes) == 1


def test_a_five_alone_whose_bar_is_apart_is_one_digit():
    page = np.full((500, 1000), 255, np.uint8)
    page[100:116, 300:420] = 0
    page[140:400, 300:316] = 0
    assert len(digit_finder.find_digits(page).boxes) == 1


def test_a_box_ends_with_the_page():
    page = np.full((397, 501), 255, np.uint8)
    page[40:, 300:330] = page[40:70, 300:] = 0  # cut by two edges
    [box] = digit_finder.find_digits(page).boxes
    assert (box.bottom, box.right) == (397, 501) and abs(box.top - 40) < 8 and abs(box.left - 300) < 8


def test_a_one_under_the_bar_of_a_seven_stays_apart():
    page = np.full((200, 300), 230, np.uint8)
    page[40:50, 40:120] = 20
    for row in range(50, 150):
        page[row, 110 - (row - 50) // 2 : 120 - (row - 50) // 2] = 20
    page[70:150, 116:125] = 20
    assert len(digit_finder.find_digits(page).boxes) == 2


@pytest.mark.parametrize("mode", ["1", "P"])
def test_a_large_scan_of_few_colours_is_as_good_as_a_grey_one(mode):
    page = np.full((3000, 4800), 255, np.uint8)
    for number in range(8):
        page[1000:2000, 400 + 501 * number : 404 + 501 * number] = 0
    file = io.BytesIO()
    Image.fromarray(page).convert(mode).save(file, "PNG")
    assert len(digit_finder.find_digits(images.read_image(file.getvalue(), "scan")).boxes) == 8


def test_parts_of_one_digit_are_joined_and_specks_are_dropped():
    page = np.full((200, 300), 255, np.uint8)
    page[40:46, 50:100] = 0  # the bar of a five, apart from the rest
    page[56:150, 50:60] = 0
    page[60:150, 200:212] = 0
    page[5:8, 280:283] = 0
    assert len(digit_finder.find_digits(page).boxes) == 2


def test_digits_of_lines_set_tightly_stay_apart():
    """As in a sum on paper: the gap between lines is a tenth of a digit."""
    page = np.full((400, 500), 255, np.uint8)
    for top, left in itertools.product((40, 128, 216), (50, 150, 250, 350)):
        page[top : top + 80, left : left + 8] = page[top : top + 80, left + 42 : left + 50] = 0
        page[top : top + 8, left : left + 50] = 0
    boxes = digit_finder.find_digits(page).boxes
    assert [(box.top // 80, box.left // 50) for box in boxes] == [*itertools.product((0, 1, 2), (1, 3, 5, 7))]


def test_shapes_that_are_no_digits_beside_the_others_are_counted():
    page = draw_page(["31"])
    assert digit_finder.find_digits(page).left_out == 0
    page[5:23, 5:10] = 40  # a mark, a quarter as high
    found = digit_finder.find_digits(page)
    assert (len(found.boxes), found.left_out) == (2, 1)


def test_the_same_page_is_found_in_every_format_and_mode():
    page = draw_page(["27"])
    reference = digit_finder.find_digits(page).digits
    grey = Image.fromarray(page)
    clear = Image.merge("LA", (Image.new("L", grey.size, 0), Image.fromarray(255 - page)))
    wide = Image.fromarray(page.astype(np.uint16) * 200)
    for image, kind in [
        (grey, "PNG"),
        (grey, "BMP"),
        (grey, "TIFF"),
        (grey.convert("P"), "GIF"),
        (grey.convert("RGB"), "WEBP"),
        (grey.convert("CMYK"), "JPEG"),
        (clear, "PNG"),
        (wide, "PNG"),
    ]:
        file = io.BytesIO()
        image.save(file, kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}))
        result = digit_finder.find_digits(images.read_image(file.getvalue(), kind)).digits
        assert len(result) == 2, (kind, image.mode)
        assert np.abs(result.astype(int) - reference).mean() < 6, (kind, image.mode)


def test_a_photograph_lying_on_its_side_is_turned_up():
    page = draw_page(["27"])
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(np.rot90(page)).save(file, "JPEG", exif=exif, quality=95)
    assert images.read_image(file.getvalue(), "photo").shape == page.shape


def as_file(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("TIFF", {}), ("GIF", {"disposal": 2}), ("PNG", {}), ("WEBP", {"lossless": True})],
    ids=["TIFF", "GIF", "APNG", "WebP"],
)
def test_every_page_of_a_file_is_read(kind, options):
    blank = Image.new("L", (240, 120), 225)
    sheets = [blank, *(Image.fromarray(draw_page([digits])) for digits in ("31", "42"))]  # an empty cover first
    content = as_file(sheets[0], kind, save_all=True, append_images=sheets[1:], **options)
    (name, first), *others = images.read_pages(content, "scan")
    with pytest.raises(UserError, match="empty"):
        digit_finder.find_digits(first)
    assert [(name, len(digit_finder.find_digits(page).boxes)) for name, page in others] == [
        ("scan, page 2 of 3", 2),
        ("scan, page 3 of 3", 2),
    ]
    assert name == "scan, page 1 of 3"
    with pytest.raises(UserError, match=r"^scan has 3 pages, expected one: give each as a file of its own$"):
        images.read_image(content, "scan")


def test_the_pages_before_a_damaged_one_are_read_and_it_is_named():
    sheets = [Image.fromarray(draw_page([digits])) for digits in ("31", "42", "7")]
    content = bytearray(as_file(sheets[0], "TIFF", save_all=True, append_images=sheets[1:], compression="tiff_lzw"))
    with Image.open(io.BytesIO(content)) as file:
        file.seek(1)
        [start, *_], [length, *_] = file.tag_v2[273], file.tag_v2[279]  # where the pixels of its first strip stand
    content[start : start + length] = b"\xff" * length
    pages = images.read_pages(bytes(content), "scan")
    assert len(digit_finder.find_digits(next(pages)[1]).boxes) == 2
    with pytest.raises(UserError, match=r"^scan, page 2 of 3 is no image that can be read"):
        next(pages)


@pytest.mark.parametrize("size", [100, 400, 1300])
def test_whether_ink_or_paper_is_dark_is_seen_for_thin_and_bold_pens_on_pages_of_every_size(size):
    """Of bold digits and of light ones, a second look is taken: at their whole shape, on large pages a small one."""
    seven = load_json(STROKES)["round"]["7"]
    for pen in (3, 20):
        values = stress_tests.draw(seven, pen, size).astype(np.float32) / 255
        for page in (values, 1 - values):
            dark = digit_finder._with_dark_ink(page)
            is_plain = size > 1200 or (pen == 3 and page is values)
            assert len(dark) == (1 if is_plain else 2)
            assert not is_plain or np.allclose(dark[0], values, atol=1e-6)
        boxes = [digit_finder.find_digits((255 * page).astype(np.uint8)).boxes for page in (values, 1 - values)]
        assert boxes[0] == boxes[1] and len(boxes[0]) == 1


def test_what_gleams_on_a_page_is_no_ink():
    grey = np.where(draw_page(["012345"] * 6, pen=5, size=60) > 128, 150, 90).astype(np.uint8)
    page = Image.fromarray(np.pad(grey, 120, constant_values=150))
    for number in range(20):
        left, top = (30 + 28 * number, 40) if number % 2 else (40, 30 + 28 * number)
        ImageDraw.Draw(page).ellipse((left, top, left + 16, top + 16), 255)
    boxes = digit_finder.find_digits(np.asarray(page)).boxes
    assert len(boxes) == 36 and all(box.sides[0] > 25 for box in boxes)


def test_more_pages_than_anybody_scans_are_an_error():
    sheets = [Image.new("1", (8, 8), number % 2) for number in range(101)]
    content = as_file(sheets[0], "TIFF", save_all=True, append_images=sheets[1:])
    with pytest.raises(UserError, match=r"^scan has 101 pages, expected at most 100: give it in parts$"):
        list(images.read_pages(content, "scan"))


@pytest.mark.parametrize("colour", [255, 0, 90])
@pytest.mark.parametrize("rows", [["7"], ["2718"]])
def test_a_drawing_in_one_colour_on_nothing_is_the_same_in_every_colour(colour, rows):
    """As a canvas exports it: what is drawn is the transparency."""
    page = draw_page(rows)
    ink = Image.fromarray((225 - page) * (255 // 185))
    clear = Image.merge("LA", (Image.new("L", ink.size, colour), ink))
    read = images.read_image(as_file(clear))
    assert np.array_equal(read, 255 - np.asarray(ink))
    assert len(digit_finder.find_digits(read).boxes) == len(rows[0])


def test_ink_and_paper_of_one_brightness_are_told_apart_by_their_colour():
    mask = Image.fromarray(draw_page(["31"])).point(lambda value: 255 * (value < 128))
    red, grey = Image.new("RGB", mask.size, (220, 60, 60)), Image.new("RGB", mask.size, (108, 108, 108))
    assert abs(np.ptp(np.asarray(Image.composite(red, grey, mask).convert("L")))) <= 1
    read = images.read_image(as_file(Image.composite(red, grey, mask)))
    assert len(digit_finder.find_digits(read).boxes) == 2


def test_noise_does_not_change_the_size_of_a_digit_in_a_small_picture():
    """It is cropped where its faint edges end: noise with a standard deviation of a twentieth of its ink is no edge."""
    plain = np.full((56, 56), 225.0)
    plain[16:40, 16:40] = stress_tests.draw(load_json(STROKES)["round"]["8"], 8, 24)
    noisy = plain + np.random.default_rng(0).normal(0, 9, plain.shape)
    forms = [digit_finder.find_digits(page.clip(0, 255).astype(np.uint8)).digits[0] for page in (plain, noisy)]
    boxes = [np.argwhere(form > 100) for form in forms]
    np.testing.assert_allclose([box.min(0) for box in boxes][1], boxes[0].min(0), atol=2)
    np.testing.assert_allclose([box.max(0) for box in boxes][1], boxes[0].max(0), atol=2)


def test_a_small_image_that_is_wider_than_high_may_hold_several_digits():
    small = Image.fromarray(draw_page(["42"])).resize((64, 32), Image.Resampling.BOX)
    assert len(digit_finder.find_digits(np.asarray(small)).boxes) == 2


@pytest.mark.parametrize(("width", "height"), [(80, 80), (60, 80), (240, 300), (480, 640)])
def test_a_digit_that_fills_its_picture_is_found_at_every_size(width, height):
    page = np.full((height, width), 225, np.uint8)
    for share in (0.85, 0.88, 0.9):
        high, wide = round(height * share), round(width * 0.6)
        top, left, pen = (height - high) // 2, (width - wide) // 2, max(4, height // 12)
        page[:] = 225
        page[top : top + pen, left : left + wide] = page[top : top + high, left + wide - pen : left + wide] = 40
        [box] = digit_finder.find_digits(page).boxes
        assert abs(box.bottom - box.top - high) <= height / 15


def test_a_blue_pen_on_a_sheet_on_a_brown_table_is_ink():
    mask = Image.fromarray(draw_page(["3142"])).point(lambda value: 255 * (value < 128))
    sheet = Image.composite(
        Image.new("RGB", mask.size, (60, 80, 200)), Image.new("RGB", mask.size, (225, 222, 209)), mask
    )
    table = Image.new("RGB", (mask.width * 2, mask.height * 3), (150, 95, 50))
    table.paste(sheet, (mask.width // 2, mask.height))
    assert len(digit_finder.find_digits(images.read_image(as_file(table))).boxes) == 4


def test_a_photograph_with_a_preview_inside_is_one_page():
    photo = Image.fromarray(draw_page(["31"])).convert("RGB")
    content = as_file(photo, "MPO", save_all=True, append_images=[photo.resize((60, 30))])
    assert images.read_image(content, "photo").shape == (120, 240)


def test_small_light_type_on_a_wide_dark_page_is_read():
    page = Image.new("L", (2560, 300), 20)
    ImageDraw.Draw(page).text((40, 40), "3141592", 235, ImageFont.truetype(FONT, 13))
    assert len(digit_finder.find_digits(np.asarray(page)).boxes) == 7


FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")


def printed(width, height, points, dpi, rows=5):
    page = Image.new("L", (width, height), 255)
    font = ImageFont.truetype(FONT, points * dpi / 72)
    for row in range(rows):
        ImageDraw.Draw(page).text((dpi, dpi / 2 + 2 * row * points * dpi / 72), "0123456789", 0, font)
    return page


@pytest.mark.parametrize(("points", "dpi"), [(10, 150), (10, 200), (24, 200), (36, 300)])
def test_a_printed_page_of_a4_is_read_whole(points, dpi):
    page = printed(round(8.27 * dpi), round(11.7 * dpi), points, dpi)
    boxes = digit_finder.find_digits(np.asarray(page)).boxes
    assert len(boxes) == 50
    lines = [boxes[start : start + 10] for start in range(0, 50, 10)]
    assert all([box.left for box in line] == sorted(box.left for box in line) for line in lines)
    assert all(above[0].bottom < below[0].top for above, below in itertools.pairwise(lines))


def test_white_paper_below_a_line_does_not_join_its_digits():
    boxes = [digit_finder.find_digits(np.asarray(printed(760, height, 36, 96, rows=1))).boxes for height in (160, 1600)]
    assert boxes[0] == boxes[1] and len(boxes[0]) == 10


@pytest.mark.parametrize(("kind", "grey"), [("ruled", 120), ("ruled", 190), ("squared", 190)])
def test_lines_on_the_paper_are_no_ink(kind, grey):
    rows = 2 * ROWS  # a line runs over a third of the page at least
    page = draw_page(rows)
    for row in range(102, page.shape[0], 120 if kind == "ruled" else 40):  # through the digits' feet
        page[row : row + 3] = np.minimum(page[row : row + 3], grey)
    for column in range(17, page.shape[1], 40) if kind == "squared" else ():
        page[:, column : column + 3] = np.minimum(page[:, column : column + 3], grey)
    assert in_cells(digit_finder.find_digits(page), rows) == "".join(rows)


def test_a_shadow_with_a_hard_edge_is_no_ink():
    page = draw_page(ROWS).astype(float)
    page[:, page.shape[1] // 2 + 3 :] *= 0.55  # between two digits
    assert in_cells(digit_finder.find_digits(page.astype(np.uint8)), ROWS) == "".join(ROWS)


def test_digits_that_touch_are_cut_where_they_do():
    page = draw_page(["38"])
    left, right = digit_finder.find_digits(page).boxes
    page = np.delete(page, range(left.right + 1, right.left - 1), axis=1)  # two columns of paper are left
    assert len(digit_finder.find_digits(page).boxes) == 2
    page[left.top + 36 : left.top + 42, left.right - 8 : left.right + 10] = 40
    found = digit_finder.find_digits(page)
    assert len(found.boxes) == 2 and abs(found.boxes[0].right - left.right) <= 4
    assert not found.joined.any()


def test_digits_that_touch_all_over_are_said_to_be_joined():
    page = np.full((200, 400), 225, np.uint8)
    for row in (50, 90, 130):
        page[row : row + 8, 100:280] = 40
    page[50:138, 100:280:43] = 40
    assert digit_finder.find_digits(page).joined.tolist() == [True]


def png(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no image"),
        (b"%PDF-1.7 and more", "no image"),
        (png(100, 100)[:40], "no image"),
        (png(20_000, 5_000), "photo.png has 20,000 x 5,000 pixels, expected at most 50,000,000"),
        (png(20_000, 10_000), "photo.png has more than 50,000,000 pixels"),
    ],
)
def test_what_is_no_image_or_too_large_is_an_error_in_one_line(content, message):
    with pytest.raises(UserError, match=message) as error:
        images.read_image(content, "photo.png")
    assert str(error.value).startswith("photo.png ") and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["white", "black", "noise", "a faint line"])
def test_an_empty_page_is_an_error(kind):
    page = np.full((300, 400), 0 if kind == "black" else 250, np.uint8)
    if kind == "noise":
        page = np.random.default_rng(0).integers(215, 255, page.shape).astype(np.uint8)
    elif kind == "a faint line":
        page[100:110, 100:300] = 235
    with pytest.raises(UserError, match="empty"):
        digit_finder.find_digits(page)


def test_a_page_full_of_spots_is_an_error():
    page = np.full((1600, 1600), 255, np.uint8)
    for row, column in np.random.default_rng(0).integers(0, 1600, (2000, 2)):
        page[row : row + 16, column : column + 4] = 0
    with pytest.raises(UserError, match="shapes, expected 1,000 digits at most"):
        digit_finder.find_digits(page)


@pytest.mark.parametrize("text", ["23,456.78", "3,141,592", "12,50"])
@pytest.mark.parametrize("turn", [-2, 0, 1.5])
def test_commas_and_points_leave_the_digits_of_a_number_in_order(text, turn):
    page = Image.new("L", (600, 180), 250)
    ImageDraw.Draw(page).text((60, 50), text, 20, ImageFont.truetype(FONT, 60))
    boxes = digit_finder.find_digits(np.asarray(page.rotate(turn, Image.Resampling.BICUBIC, fillcolor=250))).boxes
    digits = [box for box in boxes if box.sides[0] > 30]
    assert len(digits) == sum(map(str.isdigit, text)) and digits == sorted(digits, key=lambda box: box.left)


def in_boxes(frame):
    """A row of eight digits of 120 x 120, in front of what `frame` draws around the cell from a column on."""
    page = Image.new("L", (1160, 300), 250)
    for cell in range(8):
        frame(ImageDraw.Draw(page), 100 + 120 * cell)
    digits = draw_page(["72104149"])
    return np.minimum(np.asarray(page), np.pad(digits, ((90, 90), (100, 100)), constant_values=255))


@pytest.mark.parametrize(
    "frame",
    [
        lambda draw, left: draw.rectangle((left, 90, left + 120, 210), None, 40, 3),
        lambda draw, left: draw.rectangle((left + 6, 94, left + 114, 206), None, 40, 3),
        lambda draw, left: draw.line((left + 15, 200, left + 105, 200), 40, 4),
    ],
    ids=["boxes", "a box each", "a dash each"],
)
def test_the_dark_lines_of_a_form_are_no_digits_and_no_part_of_one(frame):
    page = in_boxes(frame)
    for turn in (0, 0.7):
        turned = Image.fromarray(page).rotate(turn, Image.Resampling.BICUBIC, fillcolor=250)
        boxes = digit_finder.find_digits(np.asarray(turned)).boxes
        assert len(boxes) == 8 and all(60 < box.sides[0] < 100 for box in boxes), (turn, boxes)


def test_the_pieces_of_a_turned_grid_are_paler_than_digits():
    page = draw_page(2 * ["0123456789"])
    page = np.pad(page, 300, constant_values=225)
    for at in range(17, page.shape[1], 40):
        for lines in (page[:, at : at + 3], page[at : at + 3]):
            np.minimum(lines, 175, out=lines)
    turned = Image.fromarray(page).rotate(1.2, Image.Resampling.BICUBIC, fillcolor=225)
    boxes = digit_finder.find_digits(np.asarray(turned)).boxes
    assert (len([box for box in boxes if box.sides[0] > 50]), len(boxes)) == (20, 20)


@pytest.mark.parametrize("high", [30, 60, 100, 400])
@pytest.mark.parametrize("share", [0.15, 0.42])
def test_a_zero_with_a_dot_or_a_dash_inside_is_one_digit(high, share):
    """As many fonts for programmers have it: no frame around another digit, and no speck that takes its place."""
    page = Image.new("L", (4 * high, 2 * high), 250)
    draw, pen, inner = ImageDraw.Draw(page), max(3, high // 9), max(4, round(high * share / 2))
    for left in (high, 2 * high):
        draw.ellipse((left, high // 2, left + 0.6 * high, 1.5 * high), None, 20, pen)
        draw.ellipse((left + 0.3 * high - pen / 2, high - inner, left + 0.3 * high + pen / 2, high + inner), 20)
    boxes = digit_finder.find_digits(np.asarray(page)).boxes
    assert [box.left // high for box in boxes if box.sides[0] > 0.9 * high] == [1, 2] and len(boxes) == 2
