"""Batches from a data set: shuffled, augmented, normalised and prefetched, each a pure function of its number."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.augment import Normalize
from gpucnn.data.dataset import Dataset, to_float

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]
Augment = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]

PATIENCE = 5.0  # seconds: how long a loader that is closed waits for its thread to end the batch it is at
_CHECK = 0.2  # seconds between two looks at whether the thread is alive, while a batch is waited for
_logger = logging.getLogger("gpucnn")


class Loader:
    """Iterates over batches ``(images float32 [N, C, H, W], labels int64 [N])``, like torch's DataLoader.

    The images are indexed [N, C, H, W] and stored channels-last. A last short batch is kept unless ``drop_last``.
    ``augment(images [N, H, W, C], generator)`` changes the images on their way (see `Compose`), and
    ``normalise=(mean, std)``, numbers or one a channel, comes after it. A background thread prepares up to ``prefetch``
    batches ahead; 0 prepares them in the caller, with the same bits. An exception in it reaches the caller with a note
    that names the batch and its images; if the thread itself ends, that is a RuntimeError.

    Order and augmentation of a batch depend on ``seed``, the epoch and the batch's number alone, so a run that resumes
    with ``epoch(e, start)`` sees the batches it would have seen. Each ``iter(loader)`` is the next epoch:
    ``loader.current`` counts them.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        augment: Augment | None = None,
        normalise: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
        seed: int = 0,
        prefetch: int = 2,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(
                f"dataset must be a gpucnn.data.Dataset, got {type(dataset).__name__}; Dataset(images [N, H, W, C], "
                "labels, classes) makes one of arrays"
            )
        self.batch_size = _integer("batch_size", batch_size, 1)
        self.seed = _integer("seed", seed, 0)
        self.prefetch = _integer("prefetch", prefetch, 0)
        self.shuffle = _flag("shuffle", shuffle)
        self.drop_last = _flag("drop_last", drop_last)
        if augment is not None and not callable(augment):
            raise TypeError(f"augment must be a callable (images [N, H, W, C], generator) -> images, got {augment!r}")
        if normalise is not None and not (isinstance(normalise, Sequence) and len(normalise) == 2):
            raise TypeError(f"normalise must be (mean, std), got {normalise!r}")
        self.dataset = dataset
        self.augment = augment
        self.normalise = None if normalise is None else Normalize(*normalise)
        if self.normalise is not None:
            self.normalise.check_channels(dataset.channels)
        self.current = 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.current
        self.current += 1
        return self.epoch(epoch)

    def epoch(self, e: int, start: int = 0, on_wait: Callable[[], object] = lambda: None) -> Iterator[Batch]:
        """The batches of epoch ``e`` from batch number ``start`` on.

        While a batch is waited for, ``on_wait()`` is called five times a second; what it raises ends the epoch.
        """
        e, start = _integer("epoch", e, 0), _integer("start", start, 0)
        if start > len(self):
            raise ValueError(f"start={start} is past the end: an epoch has {len(self)} batches")
        order = self._generator(e, 0).permutation(len(self.dataset)) if self.shuffle else np.arange(len(self.dataset))
        batches = (self._batch(order, e, b) for b in range(start, len(self)))
        return _prefetched(batches, self.prefetch, on_wait) if self.prefetch else batches

    def _generator(self, epoch: int, stream: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch, stream)))

    def _batch(self, order: NDArray[np.intp], epoch: int, b: int) -> Batch:
        rows = order[b * self.batch_size : (b + 1) * self.batch_size]
        try:
            stored, labels = self.dataset[rows]
            images = to_float(stored).transpose(0, 2, 3, 1)
            if self.augment is not None:
                images = _check_augmented(self.augment(images, self._generator(epoch, 1 + b)), images)
            if self.normalise is not None:
                images = self.normalise(images)
            return np.ascontiguousarray(images).transpose(0, 3, 1, 2), labels
        except BaseException as error:
            numbers = ", ".join(map(str, rows[:8])) + ", …" * (len(rows) > 8)
            error.add_note(
                f"while {threading.current_thread().name} prepared batch {b} of epoch {epoch} (both counted from 0): "
                f"images {numbers} of {self.dataset.name}"
            )
            raise

    def __repr__(self) -> str:
        return f"Loader({self.dataset!r}, batch_size={self.batch_size}, {len(self)} batches, shuffle={self.shuffle})"


def _integer(name: str, value: Any, least: int) -> int:
    """A plain int, also of NumPy's, which JSON can't hold. Raises TypeError and ValueError."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r:.100}")
    return bool(value)


def _check_augmented(images: Any, before: NDArray[np.float32]) -> NDArray[np.float32]:
    if not isinstance(images, np.ndarray) or images.dtype != np.float32:
        raise TypeError(f"augment must return a float32 array, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or (len(images), images.shape[3]) != (len(before), before.shape[3]):
        raise ValueError(f"augment must keep [N, H, W, C] images, N and C: got {images.shape} from {before.shape}")
    return images


def _prefetched(batches: Iterator[Batch], depth: int, on_wait: Callable[[], object]) -> Iterator[Batch]:
    """Yields ``batches``, of which a thread makes up to ``depth`` in advance. Ends the thread when it is closed.

    Raises what the thread raises, and RuntimeError if it ends without a word or by what would end the process.
    """
    ready: SimpleQueue[Batch | BaseException | None] = SimpleQueue()
    room = threading.Semaphore(depth - 1)
    abandoned = threading.Event()

    def fill() -> None:
        try:
            for batch in batches:
                ready.put(batch)
                del batch
                room.acquire()
                if abandoned.is_set():
                    return
            ready.put(None)
        except BaseException as error:  # whatever it is, it belongs to the consumer
            ready.put(error)

    thread = threading.Thread(target=fill, name="gpucnn-loader", daemon=True)
    thread.start()
    try:
        while (item := _taken(ready, thread, on_wait)) is not None:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, BaseException):
                notes = "; ".join(getattr(item, "__notes__", ()))
                raise RuntimeError(f"the thread of the loader was ended by {type(item).__name__}; {notes}") from item
            room.release()
            yield item
    finally:
        abandoned.set()
        room.release()
        item = None  # an exception that refers to its own frame would wait for the cyclic collector
        if thread is not threading.current_thread():  # a cyclic collection can run in any thread
            thread.join(PATIENCE)
            if thread.is_alive():
                _logger.warning("the thread of the loader is still at a batch, after %g s; it ends behind it", PATIENCE)


def _taken(ready: SimpleQueue[Any], thread: threading.Thread, on_wait: Callable[[], object]) -> Any:
    """The next item. Raises RuntimeError if there will be none: a forked process, for one, has no such thread."""
    while True:
        try:
            return ready.get(timeout=_CHECK)
        except Empty:
            on_wait()
            if not thread.is_alive() and ready.empty():
                raise RuntimeError(
                    "the thread of the loader is gone, and has left no word; a process that was forked must begin an "
                    "iteration of its own"
                ) from None
