"""Augmentation against scalar loops written from the definitions, and SciPy where it agrees."""

import math

import numpy as np
import pytest

from gpucnn.data import Compose, Cutout, Normalize, RandomAffine, RandomCrop, RandomHorizontalFlip
from gpucnn.data.augment import warp


def batch(n=6, h=9, w=7, c=2, seed=0):
    return np.random.default_rng(seed).random((n, h, w, c), dtype=np.float32)


def rng(seed=0):
    return np.random.default_rng(seed)


EVERY = [
    RandomCrop((6, 5), 2),
    RandomHorizontalFlip(0.5),
    RandomAffine(30, (0.2, 0.1), (0.8, 1.2), 10),
    Cutout(3),
    Normalize((0.1, 0.2), (0.5, 2.0)),
    Compose([RandomHorizontalFlip(), Cutout(2)]),
]


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: type(t).__name__)
class TestEvery:
    def test_leaves_its_input_alone_and_gives_float32(self, transform):
        images = batch()
        images.flags.writeable = False
        result = transform(images, rng())
        assert result.dtype == np.float32
        assert not np.shares_memory(result, images)
        np.testing.assert_array_equal(images, batch())

    def test_depends_on_the_generator_alone(self, transform):
        np.testing.assert_array_equal(transform(batch(), rng(3)), transform(batch(), rng(3)))

    def test_takes_an_empty_batch(self, transform):
        assert len(transform(batch(0), rng())) == 0

    def test_shows_its_arguments(self, transform):
        assert eval(repr(transform)) == transform


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
        ({"degrees": 0, "fill": math.nan}, "fill must be finite, got nan"),
    ],
)
def test_affine_refuses_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomAffine(**arguments)


# --- the others ------------------------------------------------------------------------------------------------------


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


def test_a_flip_mirrors_left_and_right_with_its_probability():
    images = batch(2000, 3, 5, 1)
    result = RandomHorizontalFlip(0.25)(images, rng())
    flipped = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(result, images, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(result, images, strict=True)])
    assert (flipped ^ same).all()
    assert abs(flipped.sum() - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_a_flip_of_probability_0_or_1_is_certain():
    np.testing.assert_array_equal(RandomHorizontalFlip(0)(batch(), rng()), batch())
    np.testing.assert_array_equal(RandomHorizontalFlip(1)(batch(), rng()), batch()[:, :, ::-1])


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_flip_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match=r"p must be within 0..1, got"):
        RandomHorizontalFlip(p)


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


def test_cutout_refuses_an_empty_square():
    with pytest.raises(ValueError, match="size must be whole numbers of at least 1, got 0"):
        Cutout(0)


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
