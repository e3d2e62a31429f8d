"""Makes the files of data sets, byte by byte, from the formats' descriptions."""

import gzip
import pickle
import struct

import numpy as np


def rng(seed=0):
    return np.random.default_rng(seed)


def idx_bytes(array, code=0x08):
    header = bytes([0, 0, code, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
    return header + array.tobytes()


def write_idx(folder, name, array):
    data = idx_bytes(array)
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def write_idx_set(folder, pattern="{part}-{kind}-idx{d}-ubyte.gz", parts=("train", "t10k"), labels=(0, 1, 2, 3)):
    """7 training and 4 test images of 5×3; returns the images by part."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for part, n in zip(parts, (7, 4), strict=True):
        images[part] = rng(n).integers(0, 256, (n, 5, 3), dtype=np.uint8)
        write_idx(folder, pattern.format(part=part, kind="images", d=3), images[part])
        write_idx(folder, pattern.format(part=part, kind="labels", d=1), np.resize(labels, n).astype(np.uint8))
    return images


NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar_images(n, seed):
    return rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def cifar_rows(images):
    """Red plane, green plane, blue plane, each row by row."""
    return np.stack([np.concatenate([image[..., c].ravel() for c in range(3)]) for image in images])


def python2_pickle(entries):
    """A dict as Python 2's cPickle wrote CIFAR's batches, protocol 2: str keys, arrays with their bytes in a str."""

    def value(v):
        if isinstance(v, str):
            return b"U" + bytes([len(v)]) + v.encode("latin1")
        if isinstance(v, int):
            return b"M" + struct.pack("<H", v)
        if isinstance(v, list):
            return b"](" + b"".join(map(value, v)) + b"e"
        shape = b"".join(map(value, v.shape)) + {1: b"\x85", 2: b"\x86"}[v.ndim]
        code = v.dtype.str[1:]
        return (
            b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + b"U\x01b" + b"\x87R"
            b"(K\x01" + shape + b"cnumpy\ndtype\n" + value(code) + b"K\x00K\x01\x87R"
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            b"\x89T" + struct.pack("<I", v.nbytes) + v.tobytes() + b"tb"
        )  # fmt: skip

    return b"\x80\x02}(" + b"".join(value(k) + value(v) for k, v in entries.items()) + b"u."


def python3_pickle(entries):
    return pickle.dumps(entries, protocol=4)


def write_cifar(folder, version, dumps=python2_pickle):
    """2 images a batch. Returns (training images, test images)."""
    kind, classes = version.split()
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(1, 6) if classes == "10" else [0]
    images = {f"data_batch_{i}" if i else "train": cifar_images(2, i) for i in numbers}
    test = "test_batch" if classes == "10" else "test"
    images[test] = cifar_images(2, 99)
    names = NAMES if classes == "10" else [f"thing {i}" for i in range(100)]
    for n, (file, batch) in enumerate(images.items()):
        rows, labels = cifar_rows(batch), [n, int(classes) - 1]
        if kind == "binary":
            head = np.array(labels, np.uint8)[:, None]
            coarse = np.full((2, 1), 19, np.uint8)
            parts = [head, rows] if classes == "10" else [coarse, head, rows]
            (folder / f"{file}.bin").write_bytes(np.hstack(parts).tobytes())
        else:
            entries = {"data": rows, "labels" if classes == "10" else "fine_labels": labels, "batch_label": "a batch"}
            (folder / file).write_bytes(dumps(entries))
    if kind == "binary":
        meta = "batches.meta.txt" if classes == "10" else "fine_label_names.txt"
        (folder / meta).write_text("\n".join(names) + "\n\n")
    else:
        meta, key = ("batches.meta", "label_names") if classes == "10" else ("meta", "fine_label_names")
        (folder / meta).write_bytes(dumps({key: list(names)}))
    return np.concatenate([batch for file, batch in images.items() if file != test]), images[test]
