"""The Loader: batches, order, resumption, prefetching and the end of its thread."""

import gc
import threading
import time
import traceback

import numpy as np
import pytest

from gpucnn.data import Compose, Dataset, Loader, RandomAffine, RandomCrop, RandomHorizontalFlip, to_float


def dataset_of(n=23, h=6, w=5, c=2):
    images = np.random.default_rng(0).integers(0, 256, (n, h, w, c), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(n)  # tells which image it is
    return Dataset(images, np.arange(n) % 3, ("a", "b", "c"), "toy")


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "gpucnn-loader"]


def same(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others)
    for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


AUGMENT = Compose([RandomHorizontalFlip(), RandomAffine(20, (0.1, 0.1)), RandomCrop((5, 6), 1)])


@pytest.fixture(params=[0, 1, 3])
def prefetch(request):
    yield request.param
    assert loader_threads() == []


def test_batches_are_float_nchw_stored_channels_last_with_int64_labels(prefetch):
    data = dataset_of()
    for images, labels in Loader(data, 4, augment=AUGMENT, normalise=((0.5, 0.4), (0.2, 0.3)), prefetch=prefetch):
        assert images.dtype == np.float32
        assert images.shape[1:] == (2, 5, 6)
        assert images.transpose(0, 2, 3, 1).flags.c_contiguous
        assert labels.dtype == np.int64
        assert labels.shape == (len(images),)


def test_without_shuffle_an_epoch_is_the_data_set_in_order(prefetch):
    data = dataset_of()
    batches = list(Loader(data, 5, prefetch=prefetch))
    assert [len(images) for images, _ in batches] == [5, 5, 5, 5, 3]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), to_float(data.images))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), data.labels)


def test_a_shuffled_epoch_has_each_image_with_its_label_once(prefetch):
    data = dataset_of()
    batches = list(Loader(data, 5, shuffle=True, prefetch=prefetch))
    which = np.concatenate([np.rint(images[:, 0, 0, 0] * 255).astype(int) for images, _ in batches])
    assert sorted(which) == list(range(23))
    assert list(which) != list(range(23))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), which % 3)


@pytest.mark.parametrize(
    ("n", "batch_size", "drop_last", "sizes"),
    [
        (23, 5, False, [5, 5, 5, 5, 3]),
        (23, 5, True, [5, 5, 5, 5]),
        (20, 5, False, [5, 5, 5, 5]),
        (20, 5, True, [5, 5, 5, 5]),
        (3, 5, False, [3]),
        (3, 5, True, []),
        (0, 5, False, []),
    ],
)
def test_the_last_short_batch_is_kept_unless_dropped(n, batch_size, drop_last, sizes, prefetch):
    loader = Loader(dataset_of(n), batch_size, drop_last=drop_last, shuffle=True, prefetch=prefetch)
    assert len(loader) == len(sizes)
    assert [len(images) for images, _ in loader] == sizes


def test_prefetching_changes_no_bit():
    data = dataset_of()
    loaders = [Loader(data, 4, shuffle=True, augment=AUGMENT, seed=5, prefetch=prefetch) for prefetch in (0, 1, 4)]
    for epoch in range(2):
        same(loaders[0].epoch(epoch), loaders[1].epoch(epoch))
        same(loaders[0].epoch(epoch), loaders[2].epoch(epoch))


@pytest.mark.parametrize("start", [0, 1, 4, 6])
def test_a_resumed_epoch_has_the_same_bits(start, prefetch):
    def loader():
        return Loader(dataset_of(), 4, shuffle=True, augment=AUGMENT, seed=5, prefetch=prefetch)

    same(list(loader().epoch(3))[start:], loader().epoch(3, start))


def test_epochs_seeds_and_batches_differ():
    data = Dataset(np.tile(dataset_of(1).images, (12, 1, 1, 1)), np.arange(12) % 3, ("a", "b", "c"))
    loader = Loader(data, 4, augment=RandomAffine(90), seed=1)
    (one, _), (two, _), _ = loader.epoch(0)
    assert not np.array_equal(one, two)
    assert not np.array_equal(next(loader.epoch(1))[0], one)
    assert not np.array_equal(next(Loader(data, 4, augment=RandomAffine(90), seed=2).epoch(0))[0], one)
    orders = [
        [tuple(labels) for _, labels in Loader(data, 4, shuffle=True, seed=seed).epoch(epoch)]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_each_iteration_is_the_next_epoch():
    loader = Loader(dataset_of(), 4, shuffle=True)
    assert loader.current == 0
    same(list(loader), Loader(dataset_of(), 4, shuffle=True).epoch(0))
    for _ in loader:
        break
    assert loader.current == 2
    loader.current = 7
    same(loader, Loader(dataset_of(), 4, shuffle=True).epoch(7))


def test_normalisation_comes_last_and_per_channel(prefetch):
    data = dataset_of()

    def augment(images, generator):
        return images + np.float32(1)

    images, _ = next(Loader(data, 4, augment=augment, normalise=((1.5, 1.25), (0.5, 2)), prefetch=prefetch).epoch(0))
    plain = to_float(data.images[:4]) + np.float32(1)
    np.testing.assert_array_equal(images[:, 0], (plain[:, 0] - np.float32(1.5)) / np.float32(0.5))
    np.testing.assert_array_equal(images[:, 1], (plain[:, 1] - np.float32(1.25)) / np.float32(2))


def test_a_view_from_an_augmentation_is_stored_channels_last_too(prefetch):
    loader = Loader(dataset_of(), 4, augment=lambda images, g: images.transpose(0, 2, 1, 3)[:, ::-1], prefetch=prefetch)
    for images, _ in loader:
        assert images.shape[1:] == (2, 5, 6)
        assert images.transpose(0, 2, 3, 1).flags.c_contiguous


def test_a_batch_may_be_written_to_without_harm_to_the_data(prefetch):
    images = np.random.default_rng(0).random((6, 3, 4, 1), dtype=np.float32)
    before = images.copy()
    for batch, labels in Loader(Dataset(images, [0] * 6, ("a",)), 3, prefetch=prefetch):
        batch[:] = 9
        labels[:] = 9
    np.testing.assert_array_equal(images, before)


# --- the thread ------------------------------------------------------------------------------------------------------


class Counted:
    """An augmentation that counts its calls, and raises at one of them."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, images, generator):
        self.calls += 1
        if self.calls == self.fail_at:
            raise ArithmeticError("broken picture")
        return images


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


def test_the_thread_is_at_most_prefetch_batches_ahead():
    augment = Counted()
    batches = Loader(dataset_of(), 2, augment=augment, prefetch=3).epoch(0)
    for taken in range(1, 5):
        next(batches)
        wait_until(lambda taken=taken: augment.calls == taken + 3)
        time.sleep(0.02)
        assert augment.calls == taken + 3
    batches.close()


def test_without_prefetch_there_is_no_thread_and_nothing_ahead():
    augment = Counted()
    batches = Loader(dataset_of(), 2, augment=augment, prefetch=0).epoch(0)
    next(batches)
    assert augment.calls == 1
    assert loader_threads() == []


def test_an_exception_reaches_the_consumer_with_its_traceback(prefetch):
    batches = Loader(dataset_of(), 2, augment=Counted(fail_at=3), prefetch=prefetch).epoch(0)
    next(batches)
    next(batches)
    with pytest.raises(ArithmeticError, match="broken picture") as caught:
        next(batches)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "__call__"
    assert "_batch" in frames
    assert list(batches) == []


def test_a_break_ends_the_thread():
    for _ in Loader(dataset_of(), 2):
        assert len(loader_threads()) == 1
        break
    assert loader_threads() == []


def test_an_exception_of_the_consumer_ends_the_thread():
    def consume():
        for _ in Loader(dataset_of(), 2):
            raise KeyError("consumer")

    with pytest.raises(KeyError) as caught:
        consume()
    del caught
    gc.collect()
    assert loader_threads() == []


def test_dropping_the_iterator_ends_the_thread():
    batches = Loader(dataset_of(), 2).epoch(0)
    next(batches)
    assert len(loader_threads()) == 1
    del batches
    assert loader_threads() == []


def test_dropping_it_in_a_reference_cycle_ends_the_thread():
    cycle = [Loader(dataset_of(), 2).epoch(0)]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert loader_threads() == []


def test_an_iterator_may_be_collected_by_its_own_thread():
    """A cyclic collection can happen in the loader's thread, which cannot wait for its own end."""
    holder, held = [], threading.Event()

    def augment(images, generator):
        if images[0, 0, 0, 0] > 0:  # not the first batch
            held.wait(5)
            holder.clear()
        return images

    holder.append(Loader(dataset_of(), 2, augment=augment, prefetch=1).epoch(0))
    next(holder[0])
    held.set()
    wait_until(lambda: loader_threads() == [])
    assert holder == []


def test_two_iterators_run_side_by_side():
    loader = Loader(dataset_of(), 4, shuffle=True, augment=AUGMENT)
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    same([a for a, _ in pairs], Loader(dataset_of(), 4, shuffle=True, augment=AUGMENT, prefetch=0).epoch(0))
    same([b for _, b in pairs], Loader(dataset_of(), 4, shuffle=True, augment=AUGMENT, prefetch=0).epoch(1))


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": (np.zeros(2), np.zeros(2))}, TypeError, r"dataset must be a gpucnn.data.Dataset, got tuple"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int, got 2.0"),
        ({"batch_size": True}, TypeError, "batch_size must be an int, got True"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"prefetch": -1}, ValueError, "prefetch must be at least 0, got -1"),
        ({"shuffle": "no"}, TypeError, "shuffle must be True or False, got 'no'"),
        ({"drop_last": None}, TypeError, "drop_last must be True or False, got None"),
        ({"augment": "flip"}, TypeError, r"augment must be a callable .*, got 'flip'"),
        ({"normalise": 0.5}, TypeError, r"normalise must be \(mean, std\), got 0.5"),
        ({"normalise": ((0.1, 0.1, 0.1), (1, 1, 1))}, ValueError, "do not fit images of 2 channels"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Loader(**{"dataset": dataset_of(), "batch_size": 4, **arguments})


def test_epoch_and_start_are_checked_at_once():
    loader = Loader(dataset_of(), 4)
    with pytest.raises(ValueError, match="epoch must be at least 0, got -1"):
        loader.epoch(-1)
    with pytest.raises(ValueError, match="start=7 is past the end: an epoch has 6 batches"):
        loader.epoch(0, 7)


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [
        (lambda images, g: images.astype(np.float64), TypeError, "must return a float32 array, got float64"),
        (lambda images, g: None, TypeError, "must return a float32 array, got NoneType"),
        (lambda images, g: images[:1], ValueError, r"N and C: got \(1, 6, 5, 2\) from \(4, 6, 5, 2\)"),
        (lambda images, g: images[..., :1], ValueError, r"N and C: got \(4, 6, 5, 1\) from"),
        (lambda images, g: images[0], ValueError, r"N and C: got \(6, 5, 2\) from"),
    ],
)
def test_an_augmentation_that_breaks_the_batch_is_refused(augment, error, message, prefetch):
    with pytest.raises(error, match=message):
        next(Loader(dataset_of(), 4, augment=augment, prefetch=prefetch).epoch(0))


def test_its_repr_says_what_it_is():
    assert repr(Loader(dataset_of(), 4, shuffle=True)) == (
        "Loader(Dataset('toy', 23 images 6×5×2 uint8, 3 classes: a, b, c), batch_size=4, 6 batches, shuffle=True)"
    )
