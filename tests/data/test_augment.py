"""Augmentation against scalar loops written from the definitions, and SciPy and Pillow where they agree."""

import colorsys
import itertools
import math

import numpy as np
import pytest

from gpucnn.data import (
    CenterCrop,
    ColorJitter,
    Compose,
    Cutout,
    Dataset,
    Loader,
    Normalize,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    Resize,
)
from gpucnn.data.augment import warp


def batch(n=6, h=9, w=7, c=2, seed=0):
    return np.random.default_rng(seed).random((n, h, w, c), dtype=np.float32)


def rng(seed=0):
    return np.random.default_rng(seed)


def assert_share(count, n, p):
    """Five standard deviations of a binomial distribution: wrong once in two million."""
    assert abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p))


def assert_uniform(values, low, high):
    """Within the range, near both ends of it, and with its mean within five standard errors."""
    n, width = len(values), high - low
    assert low <= values.min() < low + width * 20 / n
    assert high - width * 20 / n < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 5 * width / math.sqrt(12 * n)


FIXED = [CenterCrop((5, 4)), Resize((12, 5)), Normalize((0.1, 0.2, 0.3), (0.5, 2.0, 1.0))]
EVERY = [
    *FIXED,
    RandomCrop((6, 5), 2, padding_mode="reflect"),
    RandomHorizontalFlip(0.5),
    RandomVerticalFlip(0.5),
    RandomResizedCrop((6, 8)),
    RandomAffine(30, (0.2, 0.1), (0.8, 1.2), 10),
    RandomRotation(40, 0.5),
    Cutout(3),
    RandomErasing(0.9, value="random"),
    RandomGrayscale(0.5),
    ColorJitter(0.4, (0.5, 1.5), 0.4, 0.1),
    Compose([RandomHorizontalFlip(), Cutout(2)]),
]


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)
class TestEvery:
    def test_leaves_its_input_alone_and_gives_float32(self, transform):
        images = batch(c=3)
        images.flags.writeable = False
        result = transform(images, rng())
        assert result.dtype == np.float32
        assert not np.shares_memory(result, images)
        np.testing.assert_array_equal(images, batch(c=3))

    def test_depends_on_the_generator_alone(self, transform):
        np.testing.assert_array_equal(transform(batch(c=3), rng(3)), transform(batch(c=3), rng(3)))

    def test_takes_an_empty_batch(self, transform):
        assert len(transform(batch(0, c=3), rng())) == 0

    def test_takes_a_view(self, transform):
        mirrored = batch(c=3)[:, ::-1].swapaxes(1, 2)
        np.testing.assert_array_equal(transform(mirrored, rng()), transform(mirrored.copy(), rng()))

    def test_shows_its_arguments(self, transform):
        assert eval(repr(transform)) == transform

    def test_refuses_what_is_no_batch_of_float32_images(self, transform):
        with pytest.raises(TypeError, match="images must be a float32 array, got uint8"):
            transform(np.zeros((2, 9, 7, 3), np.uint8), rng())
        with pytest.raises(ValueError, match=r"images must be \[N, H, W, C\] with pixels, got shape \(9, 7, 3\)"):
            transform(batch(c=3)[0], rng())

    def test_a_resumed_epoch_has_the_batches_it_would_have_had_and_another_epoch_others(self, transform):
        dataset = Dataset(rng().integers(0, 256, (20, 9, 7, 3), np.uint8), np.arange(20) % 2, ("a", "b"))
        loader = Loader(dataset, 8, augment=transform, seed=4)
        images = [images for images, _ in loader.epoch(2)]
        for k in range(3):
            np.testing.assert_array_equal(next(loader.epoch(2, start=k))[0], images[k])
        assert np.array_equal(next(loader.epoch(3))[0], images[0]) == (transform in FIXED)


# --- warp and RandomAffine -------------------------------------------------------------------------------------------


def warp_by_loops(images, matrices, fill):
    """Bilinear interpolation pixel by pixel in float64; what is outside the image is `fill`."""
    n, h, w, c = images.shape
    result = np.empty(images.shape)

    def pixel(i, y, x, k):
        return float(images[i, y, x, k]) if 0 <= y < h and 0 <= x < w else fill

    for i in range(n):
        (a, b, e), (p, q, r) = matrices[i].tolist()
        for y in range(h):
            for x in range(w):
                sx, sy = a * x + b * y + e, p * x + q * y + r
                x0, y0 = math.floor(sx), math.floor(sy)
                u, v = sx - x0, sy - y0
                for k in range(c):
                    top = (1 - u) * pixel(i, y0, x0, k) + u * pixel(i, y0, x0 + 1, k)
                    low = (1 - u) * pixel(i, y0 + 1, x0, k) + u * pixel(i, y0 + 1, x0 + 1, k)
                    result[i, y, x, k] = (1 - v) * top + v * low
    return result


def warp_tolerance(images, matrices, fill):
    """Unit roundoff × size of the coordinates (four roundings) × steepest slope, plus the interpolation's roundings."""
    h, w = images.shape[1:3]
    reach = np.abs(matrices[:, :, 0]) * w + np.abs(matrices[:, :, 1]) * h + np.abs(matrices[:, :, 2]) + 2
    span = max(float(images.max()), fill) - min(float(images.min()), fill)
    unit = 2.0**-24
    return unit * (4 * float(reach.max()) * 2 * span + 8 * (span + abs(fill)))


@pytest.mark.parametrize("fill", [0.0, -0.5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "affine",
    [
        RandomAffine(180),
        RandomAffine(0, translate=(0.6, 0.9)),
        RandomAffine(0, scale=(0.3, 3.0)),
        RandomAffine(0, shear=(-40, 40, -30, 30)),
        RandomAffine((-30, 50), (0.3, 0.2), (0.7, 1.4), 20),
    ],
    ids=["rotate", "translate", "scale", "shear", "all"],
)
def test_affine_is_bilinear_interpolation_at_the_mapped_coordinates(affine, channels, fill):
    images = batch(5, 9, 6, channels)
    affine = RandomAffine(affine.degrees, affine.translate, affine.scale, affine.shear, fill)
    matrices = affine.matrices(5, 9, 6, rng(1))
    expected = warp_by_loops(images, matrices, fill)
    np.testing.assert_allclose(affine(images, rng(1)), expected, rtol=0, atol=warp_tolerance(images, matrices, fill))


def test_affine_agrees_with_scipy():
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed")
    images = batch(4, 10, 13, 1)
    affine = RandomAffine(60, (0.2, 0.3), (0.6, 1.5), 15, fill=0.25)
    matrices = affine.matrices(4, 10, 13, rng(2))
    result = affine(images, rng(2))
    for i, matrix in enumerate(matrices):
        rows_first = matrix[::-1, [1, 0, 2]]  # SciPy's coordinates are (y, x)
        expected = ndimage.affine_transform(
            images[i, :, :, 0].astype(np.float64), rows_first, order=1, mode="grid-constant", cval=0.25
        )
        np.testing.assert_allclose(result[i, :, :, 0], expected, rtol=0, atol=warp_tolerance(images, matrices, 0.25))


def test_affine_maps_undo_rotation_shear_scale_and_shift():
    """Each map takes the place to which a point is carried, by the definition's factors, back to that point."""
    angle, sx, sy, scale = math.radians(20), math.radians(10), math.radians(-15), 1.3
    affine = RandomAffine((20, 20), None, (1.3, 1.3), (10, 10, -15, -15))
    h, w = 12, 8
    matrix = affine.matrices(1, h, w, rng())[0]
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # torchvision: RSS = R(a) · Ry(sy) · Rx(sx), where the shears are [[1, −tan sx], [0, 1]] and [[1, 0], [−tan sy, 1]]
    shear_x, shear_y = np.array([[1, -math.tan(sx)], [0, 1]]), np.array([[1, 0], [-math.tan(sy), 1]])
    forward = scale * rotation @ shear_y @ shear_x
    centre = np.array([(w - 1) / 2, (h - 1) / 2])
    for point in ([0, 0], [3, 5], [7, 11]):
        carried = centre + forward @ (np.array(point) - centre)
        np.testing.assert_allclose(matrix @ [*carried, 1], point, rtol=0, atol=1e-12)


def test_a_positive_angle_turns_clockwise():
    image = np.zeros((1, 5, 5, 1), np.float32)
    image[0, 0, 2] = 1  # 12 o'clock
    turned = RandomAffine((90, 90))(image, rng())
    assert np.unravel_index(turned.argmax(), turned.shape) == (0, 2, 4, 0)  # 3 o'clock
    np.testing.assert_allclose(turned.sum(), 1, atol=1e-5)


def test_no_change_asked_for_gives_the_same_bits():
    images = batch(4, 9, 6, 3)
    np.testing.assert_array_equal(RandomAffine(0)(images, rng()), images)


def test_translation_moves_whole_pixels_right_and_down():
    images = batch(60, 8, 20, 1)
    result = RandomAffine(0, translate=(0.1, 0.25), fill=-1)(images, rng())
    seen = set()
    for before, after in zip(images, result, strict=True):
        padded = np.full((12, 24, 1), -1, np.float32)
        padded[2:10, 2:22] = before
        places = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if np.array_equal(after, padded[2 - dy : 10 - dy, 2 - dx : 22 - dx])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {dy for dy, _ in seen} == {dx for _, dx in seen} == {-2, -1, 0, 1, 2}


def test_each_image_has_its_own_parameters_within_the_ranges():
    matrices = RandomAffine((10, 40), None, (0.5, 2.0)).matrices(500, 8, 8, rng())
    scale = 1 / np.sqrt(np.linalg.det(matrices[:, :, :2]))
    angle = np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    assert scale.min() >= 0.5 - 1e-12
    assert scale.max() <= 2 + 1e-12
    assert 10 <= angle.min() < 11
    assert 39 < angle.max() <= 40 + 1e-12
    assert len(np.unique(angle)) == 500


def test_far_outside_there_is_only_fill():
    matrices = np.array([[[1.0, 0, 1e6], [0, 1, 0]], [[1, 0, 0], [0, 1, -1e6]]])
    np.testing.assert_array_equal(warp(batch(2), matrices, 0.5), np.full((2, 9, 7, 2), 0.5, np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"degrees": -5}, r"degrees must be a number of at least 0 or \(least, most\), got -5"),
        ({"degrees": (5, -5)}, r"degrees must be \(least, most\) with least <= most, got \(5, -5\)"),
        ({"degrees": "all"}, "degrees must be a number"),
        ({"degrees": math.inf}, "degrees must be"),
        ({"degrees": 0, "translate": (0.1, 1.5)}, r"two fractions within 0..1, got \(0.1, 1.5\)"),
        ({"degrees": 0, "translate": 0.1}, "two fractions within 0..1, got 0.1"),
        ({"degrees": 0, "scale": (0, 1)}, r"scale must be \(least, most\), both above 0, got \(0, 1\)"),
        ({"degrees": 0, "scale": (2, 1)}, r"scale must be \(least, most\) .*, got \(2, 1\)"),
        ({"degrees": 0, "scale": 1.5}, "both above 0, got 1.5"),
        ({"degrees": 0, "shear": (1, 2, 3)}, r"shear must be a number .*, got \(1, 2, 3\)"),
        ({"degrees": 0, "fill": math.nan}, "fill must be a finite float32, got nan"),
    ],
)
def test_affine_refuses_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomAffine(**arguments)


# --- RandomRotation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3])
def test_a_rotation_by_quarter_turns_is_that_of_rot90(turns):
    images = batch(3, 8, 8)
    turned = RandomRotation((90 * turns, 90 * turns))(images, rng())
    np.testing.assert_array_equal(turned, np.rot90(images, turns, axes=(1, 2)))


def test_rotations_are_counter_clockwise_about_the_centre_and_uniform():
    images = np.zeros((2000, 41, 41, 1), np.float32)
    images[:, 20, 38] = 1  # 18 pixels east of the centre
    y, x = np.mgrid[20:-21:-1, -20:21]
    turned = RandomRotation((20, 40))(images, rng())[..., 0]
    weight = turned.sum(axis=(1, 2))
    angles = np.degrees(np.arctan2((turned * y).sum(axis=(1, 2)) / weight, (turned * x).sum(axis=(1, 2)) / weight))
    pixel = math.degrees(math.sqrt(0.5) / 18)  # how far the centre of a spread pixel can be from the pixel
    assert 20 - pixel < angles.min() < 20 + pixel
    assert 40 - pixel < angles.max() < 40 + pixel
    assert abs(angles.mean() - 30) < 5 * 20 / math.sqrt(12 * 2000) + pixel / 10


def test_a_rotation_leaves_fill_in_the_corners():
    turned = RandomRotation((45, 45), fill=0.25)(np.ones((1, 20, 20, 1), np.float32), rng())[0, :, :, 0]
    np.testing.assert_array_equal(turned[[0, 0, -1, -1], [0, -1, 0, -1]], 0.25)
    np.testing.assert_allclose(turned[10, 10], 1, rtol=0, atol=2.0**-22)


# --- Resize and RandomResizedCrop ------------------------------------------------------------------------------------


def resize_tolerance(before, after):
    """Roundings of two weighted means, one a side, of numbers up to 1."""
    taps = sum(math.ceil(2 * max(old / new, 1)) for old, new in zip(before, after, strict=True))
    return (taps + 4) * 2.0**-24


@pytest.mark.parametrize("size", [(9, 7), (18, 14), (4, 3), (1, 1), (20, 2), (5, 31)])
def test_resize_is_pillows_bilinear(size):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    images = batch(3, 9, 7, 2)
    result = Resize(size)(images)
    for i, c in itertools.product(range(3), range(2)):
        picture = pillow.fromarray(images[i, :, :, c]).resize(size[::-1], pillow.Resampling.BILINEAR)
        np.testing.assert_allclose(result[i, :, :, c], picture, rtol=0, atol=resize_tolerance((9, 7), size))


def test_resize_to_the_same_size_gives_the_same_bits():
    np.testing.assert_array_equal(Resize((9, 7))(batch()), batch())


def test_halving_averages_with_weights_one_three_three_one():
    row = np.array([0, 0, 0.5, 1, 1, 0.25, 0, 0], np.float32).reshape(1, 1, 8, 1)
    result = Resize((1, 4))(row)[0, 0, :, 0]
    expected = [0.5 / 7, (0 + 1.5 + 3 + 1) / 8, (1 + 3 + 0.75 + 0) / 8, 0.25 / 7]  # three pixels reach the border
    np.testing.assert_allclose(result, expected, rtol=0, atol=resize_tolerance((1, 8), (1, 4)))


@pytest.mark.parametrize(
    ("size", "before", "after"),
    [
        (14, (9, 7), (18, 14)),
        (14, (7, 9), (14, 18)),
        (5, (9, 7), (6, 5)),  # 6.43 is cut off, as in torchvision
        ([5], (7, 7), (5, 5)),
        ((5, 5), (9, 7), (5, 5)),
    ],
)
def test_a_single_size_is_that_of_the_shorter_side(size, before, after):
    assert Resize(size)(batch(2, *before)).shape == (2, *after, 2)


def test_a_resized_crop_of_the_whole_image_is_the_image():
    crop = RandomResizedCrop((9, 7), scale=(1, 1), ratio=(7 / 9, 7 / 9))
    np.testing.assert_array_equal(crop(batch(), rng()), batch())


def test_a_resized_crop_is_a_window_resized():
    images = batch(40, 6, 5, 2)
    result = RandomResizedCrop((4, 7), scale=(0.2, 0.9))(images, rng())
    windows = {
        (top, bottom, left, right): Resize((4, 7))(images[:, top:bottom, left:right])
        for top, bottom in itertools.combinations(range(7), 2)
        for left, right in itertools.combinations(range(6), 2)
    }
    seen = set()
    for i in range(40):
        fits = [window for window, resized in windows.items() if np.array_equal(resized[i], result[i])]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 15


def windows_of(crop, n, h, w):
    """What ``crop`` takes from n images of h × w: tops, lefts, heights and widths, read from two ramps."""
    ramps = np.empty((n, h, w, 2), np.float32)
    ramps[..., 0], ramps[..., 1] = np.arange(h)[:, None], np.arange(w)
    # enlarged twice at least, the outermost pixels are those of the window
    result = RandomResizedCrop((2 * h, 2 * w), crop.scale, crop.ratio)(ramps, rng())
    tops, lefts = result[:, 0, 0, 0], result[:, 0, 0, 1]
    return tops, lefts, result[:, -1, 0, 0] - tops + 1, result[:, 0, -1, 1] - lefts + 1


def test_windows_have_the_areas_shapes_and_places_asked_for():
    crop = RandomResizedCrop(1, scale=(0.1, 0.3), ratio=(0.5, 1.5))  # the widest is 0.67 of the width: all draws fit
    tops, lefts, heights, widths = windows_of(crop, 2000, 80, 80)
    # half a pixel of each side, the shortest of which is 80 √(0.1 / 1.5) = 20 pixels
    rounding = 0.5 / 20 + 0.5 / 20
    shares, ratios = heights * widths / 6400, widths / heights
    assert 0.1 * (1 - rounding) < shares.min() < 0.11
    assert 0.29 < shares.max() < 0.3 * (1 + rounding)
    assert abs(shares.mean() - 0.2) < 5 * 0.2 / math.sqrt(12 * 2000) + 0.001
    assert 0.5 * (1 - rounding) < ratios.min() < 0.55
    assert 1.4 < ratios.max() < 1.5 * (1 + rounding)
    assert abs(np.log(ratios).mean() - math.log(0.5 * 1.5) / 2) < 5 * math.log(3) / math.sqrt(12 * 2000) + 0.001
    assert_uniform(tops / (80 - heights), 0, 1)
    assert_uniform(lefts / (80 - widths), 0, 1)


def test_a_window_has_a_pixel_however_small_its_share():
    _, _, heights, widths = windows_of(RandomResizedCrop(1, scale=(0.001, 0.2), ratio=(0.1, 10)), 500, 4, 4)
    assert set(heights) >= {1, 2}
    assert set(widths) >= {1, 2}


@pytest.mark.parametrize(
    ("ratio", "window"),
    [((2, 3), np.s_[:, 4:14]), ((0.2, 0.5), np.s_[:, :, 5:14]), ((0.4, 2.5), np.s_[:])],
    ids=["wide", "tall", "whole"],
)
def test_where_no_window_fits_the_largest_in_the_middle_is_taken(ratio, window):
    images = batch(50, 18, 20, 1)
    result = RandomResizedCrop(8, (0, 0), ratio)(images, rng())  # a window of no pixel is none
    np.testing.assert_array_equal(result, Resize((8, 8))(images[window]))


# --- colours ---------------------------------------------------------------------------------------------------------


def luma(images):
    """ITU-R BT.601, in float64."""
    return np.asarray(images, np.float64) @ [0.299, 0.587, 0.114]


def test_images_turn_gray_with_their_probability():
    images = batch(2000, 2, 3, 3)
    result = RandomGrayscale(0.25)(images, rng())
    same = (result == images).all(axis=(1, 2, 3))
    expected = np.repeat(luma(images)[..., None], 3, axis=3)
    np.testing.assert_allclose(result[~same], expected[~same], rtol=0, atol=4 * 2.0**-24)
    assert_share((~same).sum(), 2000, 0.25)
    assert RandomGrayscale() == RandomGrayscale(0.1)


def test_a_gray_image_stays_as_it_is():
    images = batch(c=1)
    np.testing.assert_array_equal(RandomGrayscale(1)(images, rng()), images)
    np.testing.assert_array_equal(ColorJitter(saturation=(0, 0), hue=(0.3, 0.3))(images, rng()), images)
    np.testing.assert_array_equal(ColorJitter(brightness=(0.5, 0.5))(images, rng()), images * np.float32(0.5))


@pytest.mark.parametrize("jitter", [ColorJitter(), ColorJitter((1, 1), (1, 1), (1, 1), (0, 0))])
def test_no_change_of_colours_asked_for_gives_the_same_bits(jitter):
    images = batch(c=3) * 2 - 0.5  # which nothing clips
    np.testing.assert_array_equal(jitter(images, rng()), images)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_brightness_contrast_and_saturation_blend_with_black_the_mean_and_gray(name, factor):
    images = batch(c=3)
    gray = luma(images)[..., None]
    other = {"brightness": 0.0, "contrast": gray.mean(axis=(1, 2, 3), keepdims=True), "saturation": gray}[name]
    expected = np.clip(factor * images.astype(np.float64) + (1 - factor) * other, 0, 1)
    result = ColorJitter(**{name: (factor, factor)})(images, rng())
    np.testing.assert_allclose(result, expected, rtol=0, atol=16 * 2.0**-24)


@pytest.mark.parametrize(
    ("name", "enhancer"), [("brightness", "Brightness"), ("contrast", "Contrast"), ("saturation", "Color")]
)
def test_blends_are_those_of_pillow(name, enhancer):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    from PIL import ImageEnhance

    pixels = rng().integers(0, 256, (12, 10, 3), np.uint8)
    expected = np.asarray(getattr(ImageEnhance, enhancer)(pillow.fromarray(pixels)).enhance(1.4))
    result = ColorJitter(**{name: (1.4, 1.4)})((pixels / np.float32(255))[None], rng())[0]
    # Pillow rounds the gray image and the result to bytes, and for contrast the mean as well
    np.testing.assert_allclose(result * 255, expected, rtol=0, atol=1 + 2 * 0.4)


@pytest.mark.parametrize("turn", [-0.5, -0.13, 0.25, 1 / 3, 0.5])
def test_hue_turns_the_circle_of_hsv(turn):
    corners = np.array(list(itertools.product([0, 0.25, 1], repeat=3)), np.float32)  # gray and pure colours too
    images = np.concatenate([corners, batch(1, 5, 5, 3).reshape(-1, 3)]).reshape(1, 4, 13, 3)
    result = ColorJitter(hue=(turn, turn))(images, rng())
    for before, after in zip(images.reshape(-1, 3).tolist(), result.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        # hue is a number up to 9 in sixths, of which a sixth is the whole chroma
        np.testing.assert_allclose(after, expected, rtol=0, atol=4 * 9 * 2.0**-24)


def test_each_image_draws_its_factors():
    images = np.full((2000, 2, 2, 3), 0.25, np.float32)
    brightness = ColorJitter(0.4)(images, rng())[:, 0, 0, 0] / np.float64(0.25)
    assert_uniform(brightness, np.float64(np.float32(0.6)), np.float64(np.float32(1.4)))
    assert_uniform(ColorJitter(3)(images, rng())[:, 0, 0, 0] / np.float64(0.25), 0, 4)  # not −2 to 4
    red = images * np.array([1, 0, 0], np.float32)
    hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in ColorJitter(hue=0.1)(red, rng())[:, 0, 0].tolist()])
    assert_uniform((hues + 0.5) % 1 - 0.5, -0.1 - 1e-7, 0.1 + 1e-7)


def test_colours_change_in_every_order():
    names = {"brightness": (1.7, 1.7), "contrast": (0.6, 0.6), "saturation": (0.3, 0.3), "hue": (0.2, 0.2)}
    images = np.repeat(batch(1, 4, 4, 3), 500, axis=0)
    result = {image.tobytes() for image in ColorJitter(**names)(images, rng())}
    expected = {
        Compose([ColorJitter(**{name: names[name]}) for name in order])(images[:1], rng()).tobytes()
        for order in itertools.permutations(names)
    }
    assert len(expected) > 12  # some orders come to the same
    assert result == expected


@pytest.mark.parametrize("transform", [ColorJitter(0.1), RandomGrayscale(0)])
def test_colours_of_other_channels_are_refused(transform):
    with pytest.raises(ValueError, match=r"gray or RGB, with 1 or 3 channels, got shape \(6, 9, 7, 2\)"):
        transform(batch(), rng())


# --- RandomErasing ---------------------------------------------------------------------------------------------------


def erased_rectangles(transform, n=2000, h=60, w=60):
    """Tops, lefts, heights and widths of what it erases of images of −1, with a check that it is all of a rectangle."""
    erased = (transform(np.full((n, h, w, 1), -1, np.float32), rng()) != -1)[..., 0]
    rows, columns = erased.any(axis=2), erased.any(axis=1)
    np.testing.assert_array_equal(erased, rows[:, :, None] & columns[:, None, :])
    for sides in (rows, columns):  # each is one stretch
        assert (np.abs(np.diff(sides, axis=1, prepend=False, append=False)).sum(axis=1) <= 2).all()
    return rows.argmax(axis=1), columns.argmax(axis=1), rows.sum(axis=1), columns.sum(axis=1)


def test_erased_rectangles_have_the_areas_shapes_and_places_asked_for():
    tops, lefts, heights, widths = erased_rectangles(RandomErasing(1, scale=(0.1, 0.3), ratio=(0.5, 1.5)))
    rounding = 0.5 / 15 + 0.5 / 15  # half a pixel of each side, the shortest of which is 60 √(0.1 / 1.5) = 15 pixels
    shares, ratios = heights * widths / 3600, heights / widths
    assert 0.1 * (1 - rounding) < shares.min() < 0.11
    assert 0.29 < shares.max() < 0.3 * (1 + rounding)
    assert abs(shares.mean() - 0.2) < 5 * 0.2 / math.sqrt(12 * 2000) + 0.001
    assert 0.5 * (1 - rounding) < ratios.min() < 0.55
    assert 1.4 < ratios.max() < 1.5 * (1 + rounding)
    assert abs(np.log(ratios).mean() - math.log(0.5 * 1.5) / 2) < 5 * math.log(3) / math.sqrt(12 * 2000) + 0.001
    assert_uniform(tops / (60 - heights), 0, 1)
    assert_uniform(lefts / (60 - widths), 0, 1)


def test_a_rectangle_is_erased_with_its_probability():
    assert_share((erased_rectangles(RandomErasing(0.3))[2] > 0).sum(), 2000, 0.3)
    np.testing.assert_array_equal(RandomErasing(0)(batch(), rng()), batch())


def test_where_no_rectangle_fits_nothing_is_erased():
    np.testing.assert_array_equal(RandomErasing(1, scale=(1, 1))(batch(), rng()), batch())
    np.testing.assert_array_equal(RandomErasing(1)(batch(h=1, w=1), rng()), batch(h=1, w=1))


def test_what_is_erased_has_the_value():
    images = batch(50, 12, 12, 2)
    for value in (0.0, 0.75, (0.25, -3.0)):
        result = RandomErasing(1, value=value)(images, rng())
        erased = (result != images).all(axis=3)
        assert erased.any(axis=(1, 2)).all()
        np.testing.assert_array_equal(result[~erased], images[~erased])
        np.testing.assert_array_equal(result[erased], np.broadcast_to(np.float32(value), (erased.sum(), 2)))


def test_random_values_are_standard_normal():
    images = np.full((200, 20, 20, 3), 9, np.float32)
    result = RandomErasing(1, value="random")(images, rng())
    noise = result[result != 9]
    n = len(noise)
    assert n > 10_000
    assert abs(noise.mean()) < 5 / math.sqrt(n)
    assert abs((noise**2).mean() - 1) < 5 * math.sqrt(2 / n)


def test_one_value_a_channel_needs_as_many_channels():
    with pytest.raises(ValueError, match=r"value \(0.1, 0.2, 0.3\) does not fit images of 2 channels"):
        RandomErasing(0, value=(0.1, 0.2, 0.3))(batch(), rng())


# --- refused before any work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (RandomVerticalFlip, {"p": 1.5}, "p must be within 0..1, got 1.5"),
        (RandomGrayscale, {"p": "often"}, "p must be within 0..1, got often"),
        (RandomErasing, {"p": -1}, "p must be within 0..1, got -1"),
        (RandomErasing, {"scale": (0.1, 1.2)}, r"scale .* shares of the area within 0..1, got \(0.1, 1.2\)"),
        (RandomErasing, {"ratio": (0, 1)}, r"ratio must be \(least, most\), both above 0, got \(0, 1\)"),
        (RandomErasing, {"value": "mean"}, "value must be a number, one a channel, or \"random\", got 'mean'"),
        (RandomErasing, {"value": math.nan}, "value must be a finite number or one a channel, got nan"),
        (RandomResizedCrop, {"size": 0}, "size must be whole numbers of at least 1, got 0"),
        (RandomResizedCrop, {"size": 8, "scale": 0.5}, "scale .* shares of the area within 0..1, got 0.5"),
        (RandomResizedCrop, {"size": 8, "scale": (1, 0.5)}, r"least <= most, got \(1, 0.5\)"),
        (RandomResizedCrop, {"size": 8, "ratio": (-1, 1)}, r"ratio .*, both above 0, got \(-1, 1\)"),
        (CenterCrop, {"size": (3, 0)}, r"size must be whole numbers of at least 1, got \(3, 0\)"),
        (Resize, {"size": 2.5}, "size must be whole numbers of at least 1, got 2.5"),
        (RandomRotation, {"degrees": -3}, r"degrees must be a number of at least 0 or \(least, most\), got -3"),
        (RandomErasing, {"value": (0, -1e39)}, r"value must be a finite float32, got -1e\+39"),
        (RandomRotation, {"degrees": 3, "fill": math.inf}, "fill must be a finite float32, got inf"),
        (RandomCrop, {"size": 3, "fill": "black"}, "fill must be a finite float32, got black"),
        (
            RandomCrop,
            {"size": 3, "padding_mode": "wrap"},
            "padding_mode must be one of constant, edge, reflect, symmetric, got 'wrap'",
        ),
        (ColorJitter, {"brightness": -0.1}, "brightness must be a number of at least 0 or .*, got -0.1"),
        (ColorJitter, {"contrast": (-1, 1)}, r"contrast .*, of at least 0, got \(-1, 1\)"),
        (ColorJitter, {"saturation": (2, 1)}, r"saturation must be \(least, most\) with least <= most, got \(2, 1\)"),
        (ColorJitter, {"hue": 0.6}, r"hue must be a number of at most 0.5 or .* within -0.5..0.5, got 0.6"),
        (ColorJitter, {"hue": (-0.6, 0)}, r"hue .* within -0.5..0.5, got \(-0.6, 0\)"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


# --- the others ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "row"),
    [
        ("constant", [9, 9, 1, 2, 3, 9, 9]),
        ("edge", [1, 1, 1, 2, 3, 3, 3]),
        ("reflect", [3, 2, 1, 2, 3, 2, 1]),
        ("symmetric", [2, 1, 1, 2, 3, 3, 2]),
    ],
)
def test_padding_is_filled_as_its_mode_says(mode, row):
    images = np.array([1, 2, 3], np.float32).reshape(1, 1, 3, 1)
    crop = RandomCrop((1, 7), (2, 0), fill=9, padding_mode=mode)
    np.testing.assert_array_equal(crop(images, rng())[0, 0, :, 0], row)
    down = RandomCrop((7, 1), (0, 2), fill=9, padding_mode=mode)
    np.testing.assert_array_equal(down(images.swapaxes(1, 2), rng())[0, :, 0, 0], row)


@pytest.mark.parametrize(
    ("size", "shape", "pad"),
    [((4, 4), (3, 6), ((1, 1), (1, 0))), ((2, 6), (3, 3), ((0, 0), (3, 2))), ((3, 3), (4, 4), ((0, 0), (1, 0)))],
    ids=["a row", "two columns", "nothing"],
)
def test_what_a_crop_misses_is_added_on_both_sides_behind_the_padding(size, shape, pad):
    images = batch(200, *shape, 1) + 1
    result = RandomCrop(size, (1, 0, 0, 0), pad_if_needed=True)(images, rng())
    padded = np.pad(images, ((0, 0), *pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2))[:, :, :, 0]
    same = (windows == result[:, None, None, :, :, 0]).all(axis=(3, 4))
    assert (same.sum(axis=(1, 2)) == 1).all()
    assert same.any(axis=0).all()


@pytest.mark.parametrize(
    ("length", "size", "window"),
    [
        (7, 3, [2, 3, 4]),
        (5, 4, [0, 1, 2, 3]),  # halves go to the even number, as torchvision rounds
        (5, 2, [2, 3]),
        (4, 4, [0, 1, 2, 3]),
        (2, 5, [-1, 0, 1, -1, -1]),
    ],
)
def test_a_centre_crop_is_the_window_in_the_middle(length, size, window):
    images = np.arange(length, dtype=np.float32).reshape(1, length, 1, 1) + 1
    np.testing.assert_array_equal(CenterCrop((size, 1))(images)[0, :, 0, 0], np.add(window, 1))
    np.testing.assert_array_equal(CenterCrop((1, size))(images.swapaxes(1, 2))[0, 0, :, 0], np.add(window, 1))


def test_a_centre_crop_of_one_number_is_square():
    np.testing.assert_array_equal(CenterCrop(3)(batch()), batch()[:, 3:6, 2:5])


def test_a_crop_is_a_window_of_the_padded_image_and_every_window_occurs():
    images = batch(300, 5, 4, 2) + 1
    result = RandomCrop((4, 3), (1, 0, 0, 2))(images, rng())  # left 1, bottom 2: 7 × 5
    assert result.shape == (300, 4, 3, 2)
    seen = set()
    for before, after in zip(images, result, strict=True):
        padded = np.zeros((7, 5, 2), np.float32)
        padded[:5, 1:] = before
        places = [(y, x) for y in range(4) for x in range(3) if np.array_equal(after, padded[y : y + 4, x : x + 3])]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 4 * 3


@pytest.mark.parametrize(
    ("crop", "shape"),
    [
        (RandomCrop(6, 2), (6, 6)),
        (RandomCrop(8, (3, 0)), (8, 8)),
        (RandomCrop((9, 7)), (9, 7)),
        (RandomCrop(7), (7, 7)),
    ],
)
def test_crop_sizes_and_paddings_are_read_as_torchvision_reads_them(crop, shape):
    assert crop(batch(2, 9, 7), rng()).shape == (2, *shape, 2)


def test_a_crop_as_large_as_the_image_is_the_image():
    np.testing.assert_array_equal(RandomCrop((9, 7))(batch(), rng()), batch())


def test_a_crop_larger_than_the_padded_image_is_refused():
    with pytest.raises(ValueError, match=r"RandomCrop of 12×5 does not fit in an image of 9×7 with padding 1: .*11×9"):
        RandomCrop((12, 5), 1)(batch(), rng())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "size must be whole numbers of at least 1, got 0"),
        ((2.5,), "size must be whole numbers"),
        (((1, 2, 3),), r"size must be 1 or 2 numbers, got \(1, 2, 3\)"),
        ((3, -1), "padding must be whole numbers of at least 0, got -1"),
        ((3, (1, 2, 3)), r"padding must be 1 or 2 or 4 numbers, got \(1, 2, 3\)"),
    ],
)
def test_crop_refuses_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomCrop(*arguments)


FLIPS = pytest.mark.parametrize(("flip", "axis"), [(RandomVerticalFlip, 1), (RandomHorizontalFlip, 2)])


@FLIPS
def test_a_flip_mirrors_its_side_with_its_probability(flip, axis):
    images = batch(2000, 3, 5, 1)
    result = flip(0.25)(images, rng())
    flipped = (result == np.flip(images, axis)).all(axis=(1, 2, 3))
    same = (result == images).all(axis=(1, 2, 3))
    assert (flipped ^ same).all()
    assert_share(flipped.sum(), 2000, 0.25)


@FLIPS
def test_a_flip_of_probability_0_or_1_is_certain(flip, axis):
    np.testing.assert_array_equal(flip(0)(batch(), rng()), batch())
    np.testing.assert_array_equal(flip(1)(batch(), rng()), np.flip(batch(), axis))


@FLIPS
@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_flip_refuses_what_is_no_probability(flip, axis, p):
    with pytest.raises(ValueError, match=r"p must be within 0..1, got"):
        flip(p)


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_cutout_zeroes_a_square_around_a_pixel_clipped_at_the_border(size):
    images = batch(400, 6, 5, 2) + 1
    result = Cutout(size)(images, rng())
    centres = set()
    for before, after in zip(images, result, strict=True):
        fits = []
        for y in range(6):
            for x in range(5):
                expected = before.copy()
                top, left = y - size // 2, x - size // 2
                expected[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
                if np.array_equal(after, expected):
                    fits.append((y, x))
        assert fits
        centres.update(fits)
    assert len(centres) == 6 * 5


@pytest.mark.parametrize("size", [0, b"1"])
def test_cutout_refuses_what_is_no_square(size):
    with pytest.raises(ValueError, match=r"size must be whole numbers of at least 1, got (0|b'1')"):
        Cutout(size)


def test_a_list_of_one_number_is_that_number():
    np.testing.assert_array_equal(Cutout([3])(batch(), rng()), Cutout(3)(batch(), rng()))


def test_normalize_subtracts_and_divides_per_channel():
    images = batch(2, 3, 4, 2)
    result = Normalize((0.25, 0.5), (0.5, 4.0))(images)
    for c, (mean, std) in enumerate([(0.25, 0.5), (0.5, 4.0)]):
        np.testing.assert_array_equal(result[..., c], (images[..., c] - np.float32(mean)) / np.float32(std))
    np.testing.assert_array_equal(Normalize(0.5, 2)(images), (images - np.float32(0.5)) / np.float32(2))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.1, 0.2), 1.0, "of one length, got 2 and 1"),
        (0.0, 0.0, "std must be above 0, got 0.0"),
        (math.nan, 1.0, "mean must be a finite number or one a channel, got nan"),
        (0.0, (), r"std must be a finite number or one a channel, got \(\)"),
    ],
)
def test_normalize_refuses_arguments_that_make_no_sense(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalize(mean, std)


def test_normalize_refuses_another_number_of_channels():
    with pytest.raises(ValueError, match=r"mean \(0.1, 0.2, 0.3\) .* do not fit images of 2 channels"):
        Normalize((0.1, 0.2, 0.3), (1, 1, 1))(batch())


def test_compose_goes_in_order_with_one_generator():
    g = rng()
    expected = Cutout(3)(RandomCrop(5)(batch(), g), g)
    np.testing.assert_array_equal(Compose([RandomCrop(5), Cutout(3)])(batch(), rng()), expected)


def test_compose_refuses_what_cannot_be_called():
    with pytest.raises(TypeError, match=r"Compose needs callables .*, got 3"):
        Compose([Cutout(1), 3])
