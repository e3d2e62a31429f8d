"""The page of `gpucnn demo` in a real browser: Debian's Chromium, headless, driven by Playwright."""

import io
import json
import re
import shutil
import threading

import numpy as np
import pytest
import uvicorn
from PIL import Image

import gpucnn
from gpucnn import cli, nn
from gpucnn.backends import available_backends
from gpucnn.checkpoint import load_model, save_model
from gpucnn.page import Networks, find, networks, server

CHROMIUM = shutil.which("chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no browser to test in")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")

# In the page: the channels of a canvas's pixels.
SCRIPT = """
window.canvases = (selector) => [...document.querySelectorAll(selector)].map((canvas) => canvas.toDataURL()).join();
window.bytes = (canvas, ...box) => {  // of a copy: the browser would advise to read this one another way
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return [...copy.getImageData(...box).data];
};
window.alphas = (canvas, ...box) => bytes(canvas, ...box).filter((value, n) => n % 4 === 3);
window.colours = (canvas, ...box) => bytes(canvas, ...box).filter((value, n) => n % 4 !== 3);
window.at = (selector) => document.querySelector(selector);
"""

# Strokes in fractions of the sheet.
SEVEN = [(0.28, 0.25), (0.72, 0.25), (0.58, 0.5), (0.45, 0.85)]
ZERO = [(0.5 + 0.2 * np.sin(a), 0.5 - 0.32 * np.cos(a)) for a in np.linspace(0, 2 * np.pi, 13)]


def read(path):
    return (*load_model(path / "model.safetensors" if path.is_dir() else path), 256)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A LeNet-5 that knows digits fairly well, and an untrained network for pictures in colour."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "EPOCHS", 3)
        networks.train_first(folder / "digits.safetensors", {})
    with gpucnn.use_backend("numpy"):
        colour = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                               nn.Linear(4, 3))  # fmt: skip
    save_model(colour, folder / "colour.safetensors", classes=["cat", "dog", "frog"], image_size=[12, 16], channels=3)
    return folder


@pytest.fixture(scope="module")
def address(runs):
    """Of a server that runs in this process."""
    found = find([runs / "digits.safetensors", runs / "colour.safetensors"], runs / "none", runs / "none")
    backends = tuple(name for name in ("numpy", "emulator") if name in available_backends())
    page = server.Page(Networks(found, read, lambda settings: cli._load(settings)[1]), backends, "numpy")
    with server.listen(0) as listening:
        port = listening.getsockname()[1]
        config = uvicorn.Config(page.app(port), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}/"
        running.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--process-per-site"])
        launched.new_context().new_page()  # stays open: the tabs of most tests share its processes
        yield launched
        launched.close()


class Tab:
    """A tab that notes what must not happen: errors in the console, and requests to anything but the server."""

    def __init__(self, browser, address, **context):
        self.address = address
        self.problems = []
        self.page = (browser.new_context(**context) if context else browser.contexts[0]).new_page()
        self.page.set_default_timeout(15_000)
        sync_api.expect.set_options(timeout=15_000)
        self.page.add_init_script(SCRIPT)
        self.page.on("console", lambda note: note.type in ("error", "warning") and self.problems.append(note.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: request.url.startswith(address) or self.problems.append(request.url))

    def open(self):
        self.page.goto(self.address)
        self.answered()
        return self.page

    def until(self, expression):
        """Wait until JavaScript is true. Playwright's own wait_for_function needs eval, which the page forbids."""
        pause = "await new Promise((next) => setTimeout(next, 20))"
        loop = f"async () => {{ for (let n = 0; n < 750; n += 1) {{ if ({expression}) return true; {pause}; }} }}"
        assert self.page.evaluate(loop), f"never true: {expression}"

    def answered(self):
        """Wait until what is shown is the answer to what is drawn and chosen."""
        self.until("at('main').getAttribute('aria-busy') === 'false'")

    def draw(self, points):
        self.page.locator("#drawing").scroll_into_view_if_needed()
        box = self.page.locator("#drawing").bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=3)
        self.page.mouse.up()
        self.answered()

    def verdict(self):
        return self.page.locator("#verdict").inner_text()

    def overflow(self):
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture
def tab(browser, address):
    tabs = []

    def opened(**context):
        tabs.append(Tab(browser, address, **context))
        tabs[-1].open()
        return tabs[-1]

    yield opened
    for one in tabs:
        one.page.close()
        assert one.problems == []


# -- drawing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("points", "digit"), [(SEVEN, "7"), (ZERO, "0")], ids=["seven", "zero"])
def test_a_digit_drawn_by_mouse_is_recognised(tab, points, digit):
    one = tab()
    assert one.verdict() == "–"
    one.draw(points)
    assert one.verdict() == digit
    first = one.page.locator("#bars .first")
    assert first.locator(".name").inner_text() == digit
    assert int(re.match(r"\d+", first.locator(".share").inner_text())[0]) >= 50
    sync_api.expect(one.page.locator("#announcement")).to_have_text(re.compile(f"^{digit}, "))


def test_every_layers_maps_change_as_one_draws(tab):
    one = tab()
    read = "[...document.querySelectorAll('.layer')].map((layer, n) => canvases(`.layer:nth-child(${n + 1}) canvas`))"
    before = one.page.evaluate(read)
    one.draw(SEVEN)
    after = one.page.evaluate(read)
    assert len(before) == len(after) == 11
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert one.page.locator(".layer").first.locator("canvas").count() == 6


def test_the_answer_follows_while_the_pen_is_down(tab):
    one = tab()
    box = one.page.locator("#drawing").bounding_box()
    one.page.mouse.move(box["x"] + 80, box["y"] + 60)
    one.page.mouse.down()
    for n in range(3):
        one.page.mouse.move(box["x"] + 80 + 20 * n, box["y"] + 90 + 40 * n, steps=3)
        one.answered()
    one.page.mouse.up()


def test_undo_takes_back_a_stroke_and_clear_all_of_them(tab):
    one = tab()
    one.draw(SEVEN)
    one.draw([(0.2, 0.2), (0.8, 0.8)])
    for button, verdict in (("Undo", "7"), ("Clear", "–"), ("Undo", "7"), ("Undo", "–")):
        one.page.get_by_role("button", name=button, exact=True).click()
        one.answered()
        assert one.verdict() == verdict
    assert one.page.get_by_role("button", name="Undo").is_disabled()


def test_a_touch_leaves_a_dot(tab):
    one = tab(has_touch=True, viewport={"width": 360, "height": 740})
    one.page.locator("#drawing").tap()
    one.answered()
    assert one.verdict() != "–"


def test_a_wider_brush_leaves_more_ink(tab):
    one = tab()
    ink = "alphas(at('#drawing'), 0, 0, 280, 280).filter(Boolean).length"
    found = []
    for width in ("4", "16"):
        one.page.locator("#brush").fill(width)
        one.draw([(0.2, 0.5), (0.8, 0.5)])
        found.append(one.page.evaluate(ink))
    assert found[1] > 3 * found[0]


def test_centring_can_be_turned_off(tab):
    one = tab()
    one.draw([(x / 3, y / 3) for x, y in SEVEN])  # small, in a corner
    pixels = "alphas(at('#input'), 14, 14, 14, 14).filter(Boolean).length"
    assert one.page.evaluate(pixels) > 0
    one.page.get_by_label("Centre and scale").uncheck()
    one.answered()
    assert one.page.evaluate(pixels) == 0


def test_a_sample_is_shown_exactly_and_recognised(tab):
    """Also with centring, which leaves alone what has been centred."""
    one = tab()
    samples = one.page.locator("#samples button")
    assert samples.count() == 10
    right = 0
    for n in range(10):
        samples.nth(n).click()
        one.answered()
        right += one.verdict() == samples.nth(n).get_attribute("title")
        shown, sample = "#input", f"#samples button:nth-child({n + 1}) canvas"
        read = "(selector) => alphas(at(selector), 0, 0, 28, 28)"
        assert one.page.evaluate(read, shown) == one.page.evaluate(read, sample)
    assert right >= 7


def test_other_samples_come_on_demand(tab):
    one = tab()
    read = "canvases('#samples canvas')"
    before = one.page.evaluate(read)
    one.page.get_by_role("button", name="Others").click()
    one.until(f"{read} !== '{before}' && document.querySelectorAll('#samples canvas').length === 10")


# -- keys ------------------------------------------------------------------------------------------


def test_all_can_be_done_by_keys_alone(tab):
    one = tab()
    page = one.page
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => { const active = document.activeElement;
               return [active.id || active.className || active.tagName, getComputedStyle(active).outlineStyle]; }"""
        )
        if name == "BODY":
            break
        reached.append(name)
        assert outline != "none", f"the focus on {name} can't be seen"
    assert {"network", "backend", "drawing", "brush", "centre", "others", "maps"} <= set(reached)

    page.locator("#drawing").focus()
    for _ in range(12):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    for _ in range(24):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    one.answered()
    assert one.verdict() == "1"
    page.keyboard.press("ArrowLeft")  # the pen is up
    page.keyboard.press("Control+z")
    one.answered()
    assert one.verdict() == "–"


def test_a_unit_is_chosen_and_explained_by_keys(tab):
    one = tab()
    one.draw(SEVEN)
    maps = one.page.locator(".maps").first
    maps.focus()
    one.page.keyboard.press("ArrowRight")
    reading = one.page.locator(".layer").first.locator(".reading")
    assert re.match(r"\(0, 13, 13\) = [−\d]", reading.inner_text())
    for _ in range(15):
        one.page.keyboard.press("ArrowRight")
    assert reading.inner_text().startswith("(1, 13, 0) = ")
    one.page.keyboard.press("Enter")
    shown = one.page.frame_locator("iframe.ready")
    sync_api.expect(shown.locator("body")).to_contain_text("unit (1, 13, 0)")
    one.page.keyboard.press("Escape")
    sync_api.expect(one.page.locator("iframe")).to_have_count(0)


# -- explanations ----------------------------------------------------------------------------------


def test_a_click_on_a_unit_shows_its_explanation_in_full(tab):
    one = tab()
    one.draw(SEVEN)
    one.page.locator(".map").nth(2).click(position={"x": 40, "y": 25})
    frame = one.page.locator("iframe.ready")
    sync_api.expect(one.page.frame_locator("iframe.ready").locator("body")).to_contain_text("unit (2, 8, 13)")
    one.until("at('iframe.ready').offsetHeight > 100")
    cut = frame.evaluate("(f) => f.contentDocument.documentElement.scrollHeight - f.clientHeight")
    assert cut <= 1, "it must not need to be scrolled"


def test_an_explanation_follows_the_drawing(tab):
    one = tab()
    one.draw(SEVEN)
    one.page.locator(".maps").last.locator(".map").click(position={"x": 5, "y": 5})
    body = one.page.frame_locator("iframe.ready").locator("body")
    sync_api.expect(body).to_contain_text("unit 0 of 10")
    before = body.inner_text()
    one.draw([(0.2, 0.6), (0.8, 0.6)])
    one.until(f"at('iframe.ready').contentDocument.body.innerText !== {json.dumps(before)}")
    sync_api.expect(one.page.locator("iframe")).to_have_count(1)


def test_there_is_one_explanation_at_a_time_and_it_can_be_closed(tab):
    one = tab()
    for layer in (0, 5):
        one.page.locator(".maps").nth(layer).locator(".map").first.click()
        sync_api.expect(one.page.locator("iframe.ready")).to_have_count(1)
    sync_api.expect(one.page.locator(".layer").nth(5).locator("iframe")).to_have_count(1)
    one.page.get_by_role("button", name="Close").click()
    sync_api.expect(one.page.locator("iframe")).to_have_count(0)


# -- choosing --------------------------------------------------------------------------------------


def test_a_picture_chosen_while_its_network_is_on_its_way_is_shown_to_that(tab):
    one, held = tab(), []
    one.page.route("**/api/network?*", lambda route: held.append(route))
    one.page.locator("#network").select_option(index=1)
    one.page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png((12, 16))})
    one.page.wait_for_timeout(300)
    assert held
    for route in held:
        route.continue_()
    sync_api.expect(one.page.locator("#time")).to_contain_text("on numpy")


def test_another_backend_gives_the_same_answer_and_the_emulator_is_no_measure_of_speed(tab):
    if "emulator" not in available_backends():
        pytest.skip("the emulator needs a C++ compiler")
    one = tab()
    one.page.locator("#network").select_option(label=one.page.locator("#network option").nth(1).inner_text())
    one.page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png((12, 16))})
    sync_api.expect(one.page.locator("#time")).to_contain_text("on numpy")
    verdict = one.verdict()
    one.page.set_default_timeout(60_000)
    one.page.locator("#backend").select_option("emulator")
    one.answered()
    assert one.verdict() == verdict
    assert "tells nothing about the speed of a GPU" in one.page.locator("#time").inner_text()


def png(size):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_network_for_colour_takes_a_picture_in_the_place_of_a_drawing(tab):
    one = tab()
    one.page.locator("#network").select_option(index=1)
    sync_api.expect(one.page.locator("#upload")).to_be_visible()
    assert not one.page.locator("#drawing").is_visible()
    sync_api.expect(one.page.locator("#no-samples")).to_contain_text("does not say what it was trained on")
    one.page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png((12, 16))})
    one.answered()
    assert one.verdict() in ("cat", "dog", "frog")
    seen = one.page.evaluate("colours(at('#input'), 0, 0, 16, 12)")
    wanted = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    assert seen == wanted.ravel().tolist()
    one.page.locator("#network").select_option(index=0)
    one.answered()
    assert one.page.locator("#drawing").is_visible()


def test_a_file_that_is_no_picture_is_said(tab):
    one = tab()
    one.page.locator("#network").select_option(index=1)
    sync_api.expect(one.page.locator("#no-samples")).to_contain_text("does not say what it was trained on")
    one.page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    sync_api.expect(one.page.get_by_role("alert")).to_have_text("a.png is not a picture that the browser can read")


def test_the_newest_value_wins_and_the_ones_before_are_passed_over(tab):
    one = tab()
    done = one.page.evaluate(
        """async () => {
          const { latest } = await import("/latest.js");
          const begun = [], ended = [];
          const ask = latest(async (value, signal) => {
            begun.push(value);
            await new Promise((next) => setTimeout(next, 60));
            if (!signal.aborted) ended.push(value);
          });
          const wait = (time) => new Promise((next) => setTimeout(next, time));
          for (const value of [1, 2]) ask(value);
          await wait(40);
          for (const value of [3, 4, 5]) ask(value);
          await wait(250);
          ask(6);
          await wait(40);
          ask.drop();
          ask(7);
          await wait(250);
          return [begun, ended];
        }"""
    )
    assert done == [[2, 5, 6, 7], [2, 5, 7]]


# -- how it looks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(tab, scheme):
    one = tab(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True, is_mobile=True)
    assert one.overflow() == 0
    one.page.locator("#samples button").first.click()
    one.answered()
    one.page.locator(".map").first.click()
    sync_api.expect(one.page.locator("iframe.ready")).to_have_count(1)
    assert one.overflow() == 0


def test_light_and_dark_follow_the_system_at_once(tab):
    one = tab(color_scheme="light")
    one.draw(SEVEN)
    look = "[getComputedStyle(document.body).backgroundColor, bytes(at('#drawing'), 140, 70, 1, 1).join()]"
    light = one.page.evaluate(look)
    one.page.emulate_media(color_scheme="dark")
    one.until(f"bytes(at('#drawing'), 140, 70, 1, 1).join() !== '{light[1]}'")
    dark = one.page.evaluate(look)
    assert light[0] != dark[0]
    assert light[1].endswith(",255")
    assert dark[1].endswith(",255")


def test_nothing_moves_for_those_who_want_no_motion(tab):
    moving = "getComputedStyle(document.querySelector('.bars i')).transitionDuration"
    assert tab(reduced_motion="no-preference").page.evaluate(moving) != "0s"
    assert tab(reduced_motion="reduce").page.evaluate(moving) == "0s"


def test_everything_has_a_name_for_those_who_do_not_see(tab):
    one = tab()
    nameless = one.page.evaluate(
        """[...document.querySelectorAll("button, select, input, [tabindex]")].filter((e) =>
             !e.labels?.length && !e.getAttribute("aria-label") && !e.textContent.trim()).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert one.page.locator("#announcement").get_attribute("role") == "status"


# -- beginnings and ends ---------------------------------------------------------------------------


def test_the_first_training_is_shown_until_it_is_done(browser, address):
    one = Tab(browser, address)
    told = [{"epoch": 2, "epochs": 12, "share": 0.125, "accuracy": 0.913}] * 3

    def state(route):
        body = route.fetch().json()
        route.fulfill(json=body | {"training": told.pop() if told else None})

    one.page.route("**/api/state", state)
    one.page.goto(address)
    sync_api.expect(one.page.locator("#training-text")).to_have_text("pass 2 of 12, 91 % right on what it learns from")
    assert one.page.locator("#training-bar").get_attribute("max") == "1"
    assert not one.page.locator("#drawing").is_visible()
    one.answered()
    assert one.page.locator("#drawing").is_visible()
    assert not one.page.locator("#training").is_visible()
    one.page.close()
    assert one.problems == []


def test_a_server_that_is_gone_is_said(browser, address):
    one = Tab(browser, address)
    one.open()
    one.page.route("**/api/look*", lambda route: route.abort())
    one.page.locator("#samples button").first.click()
    sync_api.expect(one.page.get_by_role("alert")).to_have_text("The server does not answer: was gpucnn demo ended?")
    one.page.unroute("**/api/look*")
    one.draw(SEVEN)
    one.answered()
    assert not one.page.get_by_role("alert").is_visible()
    one.page.close()
