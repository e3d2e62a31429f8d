"""Generators: seeds, states that go on in mid-stream, and the masks and numbers that come of them."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Generator, nn
from gpucnn import functional as F
from gpucnn.random import get_generator


@pytest.fixture(autouse=True)
def default_backend(backend: str) -> Iterator[None]:
    with gpucnn.use_backend(backend):
        yield


def drawn(generator: Generator) -> list[Any]:
    """A bit of everything that a generator gives, in amounts that leave half-used words behind."""
    ones = gpucnn.ones(3, 7)
    return [
        gpucnn.rand(3, generator=generator).tolist(),
        F.dropout(ones, 0.4, generator=generator).tolist(),
        gpucnn.randn(5, generator=generator).tolist(),
        nn.init.uniform_(gpucnn.zeros(3), generator=generator).tolist(),
        F.dropout(ones, 0.4, generator=generator).tolist(),
        gpucnn.rand(1, generator=generator).tolist(),
    ]


def test_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    first = drawn(Generator(5))
    assert drawn(Generator(5)) == first
    assert drawn(Generator(5).manual_seed(5)) == first
    for one, other in zip(first, drawn(Generator(6)), strict=True):
        assert one != other


def test_numbers_go_on_and_do_not_repeat() -> None:
    generator = Generator(5)
    for one, other in zip(drawn(generator), drawn(generator), strict=True):
        assert one != other


@pytest.mark.parametrize("draws", [0, 1, 2])
def test_state_saved_in_mid_stream_goes_on_with_the_same_numbers(draws: int) -> None:
    generator = Generator(2**64 - 1)
    gpucnn.rand(draws, generator=generator)  # an odd number of float32 leaves half a word in the buffer
    drawn(generator)
    state = json.loads(json.dumps(generator.state()))
    expected = drawn(generator), drawn(generator)
    other = Generator(0)
    drawn(other)
    other.set_state(state)
    assert (drawn(other), drawn(other)) == expected


def test_state_taken_is_not_changed_by_later_draws() -> None:
    generator = Generator(1)
    state = generator.state()
    kept = json.dumps(state)
    drawn(generator)
    assert json.dumps(state) == kept


def test_one_scope_of_a_generator_may_be_entered_again_and_inside_itself() -> None:
    generator = Generator(3)
    scope = gpucnn.use_generator(generator)
    for _ in range(2):
        with scope as entered, gpucnn.use_generator(Generator(4)), scope:
            assert get_generator() is entered is generator
        assert get_generator() is gpucnn.random.default_generator


def test_default_generator_is_seeded_for_weights_and_masks_alike() -> None:
    def made() -> list[Any]:
        gpucnn.manual_seed(11)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5))
        mask = F.dropout(gpucnn.ones(20))
        return [*(p.tolist() for p in model.parameters()), mask.tolist(), gpucnn.rand(2).tolist()]

    assert made() == made()


def test_every_mask_has_words_of_its_own() -> None:
    """Four words a step of the counter; a step that is begun is not shared."""
    generator = Generator(9)
    assert [generator.reserve(count) for count in (21, 4, 1, 0, 8)] == [(9, 0), (9, 6), (9, 7), (9, 8), (9, 8)]
    assert generator.offset == 10


def test_weights_and_masks_come_from_separate_streams() -> None:
    """A model with more dropout gets the same initial weights."""
    one, other = Generator(3), Generator(3)
    F.dropout(gpucnn.ones(100), generator=one)
    assert gpucnn.rand(4, generator=one).tolist() == gpucnn.rand(4, generator=other).tolist()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_keeps_its_share_scales_it_and_leaves_the_mean(p: float) -> None:
    count = 100_000
    y = F.dropout(gpucnn.ones(count), p, generator=Generator(4)).numpy()
    kept = np.count_nonzero(y)
    assert set(np.unique(y)) == {0, np.float32(1) * np.float32(1 / (1 - p))}
    assert abs(kept - count * (1 - p)) < 5 * np.sqrt(count * p * (1 - p))  # five standard deviations


def test_dropout_is_independent_from_element_to_element_and_call_to_call() -> None:
    generator, count = Generator(4), 20_000
    first, second = (F.dropout(gpucnn.ones(count), 0.5, generator=generator).numpy() > 0 for _ in range(2))
    for a, b in [(first[:-1], first[1:]), (first[:-4], first[4:]), (first, second)]:
        assert abs(np.mean(a == b) - 0.5) < 5 * 0.5 / np.sqrt(count)


def test_dropout_layer_drops_only_in_training() -> None:
    layer, x = nn.Dropout(0.5), gpucnn.ones(200)
    assert 0 < np.count_nonzero(layer(x).numpy()) < 200
    assert layer.eval()(x) is x


def test_uniform_and_normal_numbers_have_their_moments() -> None:
    count = 40_000
    uniform, normal = (make(count, generator=Generator(8)).numpy() for make in (gpucnn.rand, gpucnn.randn))
    assert uniform.dtype == normal.dtype == np.float32
    assert uniform.min() >= 0
    assert uniform.max() < 1
    five_deviations = 5 / np.sqrt(count)
    assert abs(uniform.mean() - 1 / 2) < five_deviations * np.sqrt(1 / 12)
    assert abs(uniform.var() - 1 / 12) < five_deviations * np.sqrt(1 / 180)  # the variance of (u − ½)²
    assert abs(normal.mean()) < five_deviations
    assert abs(normal.var() - 1) < five_deviations * np.sqrt(2)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "7", None])
def test_seed_that_is_none_is_shown(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"a seed is an int from 0 to 2\*\*64 - 1") as caught:
        Generator(seed)
    assert repr(seed) in str(caught.value)


def test_numpy_integer_is_a_seed() -> None:
    assert drawn(Generator(np.int64(5))) == drawn(Generator(5))  # type: ignore[arg-type]
