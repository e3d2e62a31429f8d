"""What notebooks show of tensors, modules and summaries, and the sheet that it is drawn on."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import gpucnn
from gpucnn import nn
from gpucnn.nn import models
from gpucnn.sheet import WIDTH, Grid, Heading, Picture, Table, as_html, as_text, numerals, page, png

VOID = {"meta", "img"}


class Balanced(HTMLParser):
    """Fails where tags do not nest; collects the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.cells = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text.append(data)
            if self.open[-1:] in (["td"], ["th"]):
                self.cells.append(data)


def read(html):
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert not parser.open
    assert not re.search("<script|http", html)
    return parser


def picture(html):
    pillow = pytest.importorskip("PIL.Image", reason="reading a picture needs Pillow")
    data = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    return None if data is None else np.asarray(pillow.open(io.BytesIO(base64.b64decode(data[1]))))


# -- tensors ---------------------------------------------------------------------------------------


def test_a_tensor_says_its_shape_dtype_backend_and_range(backend):
    x = gpucnn.tensor(np.linspace(-1, 3, 40, dtype=np.float32).reshape(5, 8), requires_grad=True, backend=backend)
    text = read(x._repr_html_()).text
    assert text[:2] == [f"Tensor 5×8 float32 on {backend}, requires_grad", "40 elements from -1 to 3, mean 1"]


def test_a_small_matrix_is_a_table_and_a_large_one_is_not():
    cells = read(gpucnn.tensor([[1.0, -2.0], [0.5, 0.0]])._repr_html_()).cells
    assert cells == ["1.00", "-2.00", "0.50", "0.00"]
    assert read(gpucnn.tensor([3, -4])._repr_html_()).cells == ["3", "-4"]
    assert not read(gpucnn.zeros(13, 2)._repr_html_()).cells


def test_images_are_shown_as_they_are_between_0_and_1():
    x = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    shown = picture(gpucnn.tensor(x)._repr_html_())
    np.testing.assert_array_equal(shown, np.rint(255 * x.astype(np.float64)).transpose(1, 2, 0))


def test_bytes_are_shown_as_they_are():
    x = np.arange(0, 120, dtype=np.uint8).reshape(2, 1, 6, 10)
    shown = picture(gpucnn.tensor(x)._repr_html_())
    np.testing.assert_array_equal(shown[:, :10], np.repeat(x[0, 0, :, :, None], 3, 2))
    np.testing.assert_array_equal(shown[:, 11:], np.repeat(x[1, 0, :, :, None], 3, 2))
    assert (shown[:, 10] == 128).all(), "a grey line is between them"


def test_normalised_images_are_stretched_and_the_picture_says_how():
    x = np.zeros((1, 3, 4))
    x[0, 0, 0], x[0, 2, 3] = -0.5, 1.5
    html = gpucnn.tensor(x)._repr_html_()
    shown = picture(html)
    assert (shown[0, 0, 0], shown[2, 3, 0], shown[1, 1, 0]) == (0, 255, 64)
    assert "1 image; black is -0.5, white 1.5" in read(html).text


def test_only_the_first_images_of_a_batch_are_shown():
    values = np.repeat(np.arange(20, dtype=np.uint8), 24).reshape(20, 1, 4, 6)
    html = gpucnn.tensor(values)._repr_html_()
    assert picture(html).shape == (4, 8 * 7 - 1, 3)
    assert picture(html)[0, ::7, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert "the first 8 of 20 images" in read(html).text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((0, 3)), "no elements"),
        (np.array(2.5), "2.5"),
        (np.array([np.nan, np.nan]), "2 elements, none finite"),
        (np.array([1.0, np.nan, 3.0]), "3 elements from 1 to 3, mean 2; 1 not finite"),
        (np.array([True, False]), "2 elements from 0 to 1, mean 0.5"),
        (np.full((1, 4, 4), np.nan), "16 elements, none finite"),
        (np.zeros((2, 5, 4, 4)), "160 elements from 0 to 0, mean 0"),
        (np.zeros((0, 1, 4, 4)), "no elements"),
        (np.full((3, 4, 4), np.inf), "48 elements, none finite"),
    ],
)
def test_odd_tensors_are_shown_too(values, said):
    assert read(gpucnn.tensor(values)._repr_html_()).text[1] == said


def test_a_large_image_is_shown_with_every_other_pixel():
    assert picture(gpucnn.zeros(1, 600, 700)._repr_html_()).shape == (300, 350, 3)


# -- modules ---------------------------------------------------------------------------------------


def test_a_module_is_a_table_of_its_layers_and_parameters():
    model = models.LeNet5()
    found = read(model._repr_html_())
    rows = [found.cells[i : i + 3] for i in range(0, len(found.cells), 3)]
    assert rows[0] == ["layer", "what it is", "parameters"]
    assert rows[1] == ["0", "Conv2d(1, 6, 5, padding=2)", "156"]
    assert [row[0] for row in rows[1:-1]] == [name for name, _ in model.named_children()]
    assert rows[-1][0] == "total"
    assert rows[-1][-1] == "61,706"
    assert "training mode, float32 on numpy" in found.text
    assert "evaluation mode, float32 on numpy" in read(model.eval()._repr_html_()).text


def test_a_module_without_parameters_or_children_is_shown():
    assert read(nn.ReLU()._repr_html_()).cells[3:6] == ["–", "ReLU()", "0"]


def test_a_summary_is_the_table_that_is_printed():
    summary = models.LeNet5().summary(1, 28, 28)
    cells = read(summary._repr_html_()).cells
    assert [word for cell in cells for word in cell.split()] == [
        word for line in str(summary).splitlines()[1:] for word in line.split() if "─" not in word and word != "LeNet5"
    ]


# -- the sheet -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "written", "power"),
    [
        ([0.5, -1.25, 0], ["0.50", "-1.25", "0.00"], ""),
        ([0.0834, -0.0052], ["0.083", "-0.005"], ""),
        ([0.834, -0.00001], ["0.83", "0.00"], ""),
        ([123.456, 1], ["123", "1"], ""),
        ([50, 30, -6600], ["50", "30", "-6600"], ""),
        ([1.5e-7, -3e-8], ["1.50", "-0.30"], " ·10⁻⁷"),
        ([2.5e9, 1e8], ["2.50", "0.10"], " ·10⁹"),
        ([0, 0], ["0", "0"], ""),
        ([np.nan, np.inf, 1.5], ["nan", "inf", "1.50"], ""),
        ([np.nan, -np.inf], ["nan", "-inf"], ""),
        ([], [], ""),
    ],
)
def test_numbers_are_written_alike_with_three_digits_for_the_largest(values, written, power):
    assert numerals(np.array(values, float)) == (written, power)


def test_grids_stand_side_by_side_as_far_as_the_width_goes():
    grid = Grid("a title", np.arange(12.0).reshape(3, 4))
    lines = as_text([tuple([grid] * 9)]).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert sum(line.count("a title") for line in lines) == 9
    assert len(lines) % 4 == 0
    assert len(lines) > 4


def test_absent_places_are_dots_and_the_marked_one_is_in_brackets():
    absent = np.array([[True, False], [False, False]])
    grid = Grid("", np.array([[9.0, 1], [2, 3]]), absent, (1, 1), "×")
    assert as_text([(grid,)]).splitlines()[1:] == ["     · 1", "  ×  2[3]"]
    html = as_html([(grid,)])
    assert ">9<" not in html
    assert html.count("mark") == 2, "in the style and at the cell"


def test_cells_are_shaded_by_sign_and_size():
    html = as_html([(Grid("", np.array([[2.0, -1.0, 0.0]])),)])
    assert '<td class="up" style="--h:0.55">2</td><td class="down" style="--h:0.28">-1</td><td>0</td>' in html


def test_tables_align_names_left_and_numbers_right():
    text = as_text([Heading("Sums"), Table(("", "value"), (("a", "1"), ("longer", "-22")))])
    assert text.splitlines() == ["Sums", "          value", "  a           1", "  longer    -22"]


def test_every_kind_of_block_becomes_well_formed_html():
    pixels = np.zeros((2, 3, 3))
    blocks = [
        Heading("<a>"),
        "x < y",
        Table(("&",), (("<",),)),
        (Grid("<t>", np.ones((1, 1))),),
        Picture(pixels, "<p>"),
    ]
    assert {"<a>", "x < y", "&", "<", "<t>", "<p>"} <= set(read(as_html(blocks)).text)


def test_a_page_is_light_or_dark_as_the_system_and_fits_a_phone():
    whole = page("a < b", as_html(["text"]))
    assert whole.startswith("<!doctype html>")
    assert "color-scheme:light dark" in whole
    assert "width=device-width" in whole
    assert "<title>a &lt; b</title>" in whole


def test_png_holds_the_pixels():
    pillow = pytest.importorskip("PIL.Image", reason="reading a picture needs Pillow")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3))
    np.testing.assert_array_equal(np.asarray(pillow.open(io.BytesIO(png(pixels)))), pixels)
