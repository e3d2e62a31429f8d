"""The server of the page, for this machine's own browser only."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import sys
import time
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Full
from typing import TypeVar

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpucnn.page.look import look, message
from gpucnn.page.networks import Network, Networks, train_first
from gpucnn.page.picture import fitted
from gpucnn.page.worker import Worker
from gpucnn.sheet import page

T = TypeVar("T")

HOST = "127.0.0.1"
MOST_BYTES = 1 << 20  # of an image
MOST_SAMPLES = 10
KEPT_EXPLANATIONS = 8
STATIC = Path(__file__).parent / "static"

# Nothing but this server's own files, and no script or style in the page itself.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
# An explanation brings its style along and is shown in a frame of its own, where no script runs.
EXPLANATION_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox allow-same-origin"
)

BACKENDS = {
    "numpy": "NumPy on the CPU",
    "cuda": "CUDA on the GPU",
    "emulator": "Emulator: checks the kernels, slow",
    "ptx": "PTX: checks the compiled kernels, slow",
}


class Guard:
    """Refuses what another site could make the browser ask, and says on every answer what the browser may do with it.

    A name that leads to 127.0.0.1 only since the page was loaded (DNS rebinding) shows in the Host header; a request
    that another site makes shows in Origin and Sec-Fetch-Site.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no route is a WebSocket's, for which browsers ask no origin for leave
            await send({"type": "websocket.close", "code": 1008})
            return
        problem = self._problem(scope["method"], {name.decode(): v.decode("latin-1") for name, v in scope["headers"]})
        answer: ASGIApp = self.app if problem is None else _refusal(403, problem)

        async def send_with_headers(sent: Message) -> None:
            if sent["type"] == "http.response.start":
                names = {name for name, _ in sent["headers"]}
                more = {
                    b"content-security-policy": PAGE_POLICY.encode(),
                    b"cross-origin-resource-policy": b"same-origin",
                    b"x-content-type-options": b"nosniff",
                    b"referrer-policy": b"no-referrer",
                    b"cache-control": b"no-store",
                }
                sent["headers"] = [*sent["headers"], *((n, v) for n, v in more.items() if n not in names)]
            await send(sent)

        await answer(scope, receive, send_with_headers)

    def _problem(self, method: str, headers: Mapping[str, str]) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self.hosts:
            return f"this page is at http://{min(self.hosts)} only, not at {host!r}"
        if origin is not None and origin not in self.origins:
            return f"the page of {origin!r} may not use this one"
        navigates = headers.get("sec-fetch-mode") == "navigate" and method == "GET"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not navigates:
            return "another site may not use this page"
        return None


def _refusal(status: int, problem: str) -> JSONResponse:
    return JSONResponse({"error": problem}, status)


class _Explanations:
    """The last few explanations, by number as text: a frame fetches them by address."""

    def __init__(self) -> None:
        self._pages: dict[str, str] = {}
        self._numbers = itertools.count(1)

    def keep(self, text: str) -> str:
        number = next(self._numbers)
        self._pages[str(number)] = text
        self._pages.pop(str(number - KEPT_EXPLANATIONS), None)
        return str(number)

    def get(self, number: str) -> str | None:
        return self._pages.get(number)


class Page:
    """What the server answers. Everything that computes runs in one worker thread, one request at a time."""

    def __init__(self, networks: Networks, backends: tuple[str, ...], backend: str) -> None:
        self.networks, self.backends, self.backend = networks, backends, backend
        self.worker = Worker()
        self.explanations = _Explanations()
        self.training: str | None = None  # "running", or what went wrong

    def app(self, port: int) -> ASGIApp:
        """The application for a server that listens on this port."""
        routes = [
            Route("/api/state", self.state),
            Route("/api/network", self.network),
            Route("/api/samples", self.samples),
            Route("/api/look", self.look, methods=["POST"]),
            Route("/api/explain", self.explain, methods=["POST"]),
            Route("/explanation/{number}", self.explanation),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ]
        problems = {HTTPException: _http_problem, Exception: _bug}
        return Guard(Starlette(routes=routes, exception_handlers=problems), port)

    def train_first(self, path: Path) -> None:
        """Let the worker train a network before it does anything else; `state` tells how far it is."""

        def job() -> None:
            try:
                train_first(path, self.networks.progress)
                self.training = None
            except Exception as error:
                self.training = str(error)

        self.training = "running"
        self.worker.submit(job)

    # -- answers -----------------------------------------------------------------------------------

    async def state(self, request: Request) -> Response:
        """What there is to choose from, and how far the first training is."""
        networks = self.networks
        entries = [{"id": e.id, "name": e.name, "about": e.about} for e in networks.entries.values()]
        training = None if self.training is None else dict(networks.progress)
        failed = self.training if self.training not in (None, "running") else None
        return JSONResponse(
            {
                "networks": entries,
                "backends": [{"id": name, "name": BACKENDS[name]} for name in self.backends],
                "backend": self.backend,
                "training": training,
                "failed": failed,
            }
        )

    async def network(self, request: Request) -> Response:
        """What images a network takes and what it tells apart."""
        id, backend = self._chosen(request)
        network = await self._compute(request, lambda: self.networks.get(id, backend))
        return JSONResponse(
            {
                "channels": network.channels,
                "height": network.size[0],
                "width": network.size[1],
                "classes": network.classes,
                "digits": network.of_digits,
            }
        )

    async def samples(self, request: Request) -> Response:
        """Some images that the network has not seen in training, or why there are none."""
        id, backend = self._chosen(request)
        seed = _whole(request, "seed", 0, 2**32 - 1)

        def job() -> bytes:
            try:
                images, labels = self.networks.samples(id, backend, MOST_SAMPLES, seed)
            except (FileNotFoundError, ImportError) as error:
                return message({"labels": [], "why": str(error)}, [])
            return message({"labels": labels, "shape": images.shape}, [images])

        return Response(await self._compute(request, job), media_type="application/octet-stream")

    async def look(self, request: Request) -> Response:
        """The probabilities of an image, and what each layer makes of it."""
        id, backend = self._chosen(request)
        pixels, centre = await _pixels(request), _flag(request, "centre")

        def job() -> bytes:
            network = self.networks.get(id, backend)
            image = _image(network, pixels, centre)
            start = time.perf_counter()
            probabilities, layers = look(network.model, network.prepared(image))
            header = {
                "input": image.shape,
                "classes": network.classes,
                "layers": [layer.told() for layer in layers],
                "milliseconds": 1000 * (time.perf_counter() - start),
            }
            seen = image.astype(np.float32)
            return message(header, [seen, probabilities, *(layer.shown for layer in layers)])

        return Response(await self._compute(request, job), media_type="application/octet-stream")

    async def explain(self, request: Request) -> Response:
        """The address of a page that explains one unit of a layer for an image."""
        id, backend = self._chosen(request)
        layer = request.query_params.get("layer", "")
        unit = _numbers(request, "unit")
        pixels, centre = await _pixels(request), _flag(request, "centre")

        def job() -> str:
            network = self.networks.get(id, backend)
            image = network.prepared(_image(network, pixels, centre))
            found = network.model.explain(image, layer, unit)
            return page(f"unit {unit} of layer {layer}", found._repr_html_())

        number = self.explanations.keep(await self._compute(request, job))
        return JSONResponse({"address": f"/explanation/{number}"})

    async def explanation(self, request: Request) -> Response:
        """The page of an explanation, for a frame."""
        text = self.explanations.get(request.path_params["number"])
        if text is None:
            raise HTTPException(404, "this explanation is no longer kept; click the unit again")
        headers = {"content-security-policy": EXPLANATION_POLICY}
        return Response(text, media_type="text/html", headers=headers)

    # -- how ---------------------------------------------------------------------------------------

    def _chosen(self, request: Request) -> tuple[str, str]:
        """The network and the backend that a request names."""
        id = request.query_params.get("network", "")
        backend = request.query_params.get("backend", self.backend)
        if id not in self.networks.entries:
            raise HTTPException(404, f"there is no network {id!r}; there are {', '.join(self.networks.entries)}")
        if backend not in self.backends:
            raise HTTPException(400, f"backend is {backend!r}, but here run {', '.join(self.backends)}")
        return id, backend

    async def _compute(self, request: Request, job: Callable[[], T]) -> T:
        """Let the worker do it. What nobody waits for any more is not begun."""
        try:
            waiting = asyncio.wrap_future(self.worker.submit(job))
        except Full:
            raise HTTPException(503, "too many requests wait already; try again") from None
        while not (await asyncio.wait([waiting], timeout=0.2))[0]:
            if await request.is_disconnected():
                waiting.cancel()
                raise HTTPException(499, "the browser no longer waits for this")
        try:
            return waiting.result()
        except (ValueError, TypeError, LookupError) as error:
            raise HTTPException(400, str(error)) from error
        except FileNotFoundError as error:
            raise HTTPException(404, str(error)) from error
        except (OSError, ImportError, RuntimeError, MemoryError, FloatingPointError) as error:
            raise HTTPException(500, str(error)) from error


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    return _refusal(500, f"a bug of gpucnn: {type(error).__name__}: {error}")


# -- what a request holds --------------------------------------------------------------------------


def _whole(request: Request, name: str, least: int, most: int) -> int:
    text = request.query_params.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
        raise HTTPException(400, f"{name} must be a whole number within {least}..{most}, got {text[:20]!r}")
    return int(text)


def _numbers(request: Request, name: str) -> tuple[int, ...]:
    words = request.query_params.get(name, "").split(",")
    if len(words) > 4 or not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise HTTPException(400, f"{name} must be whole numbers by commas, got {','.join(words)[:40]!r}")
    return tuple(map(int, words))


def _flag(request: Request, name: str) -> bool:
    return bool(_whole(request, name, 0, 1))


async def _pixels(request: Request) -> NDArray[np.uint8]:
    """The image in the body: its bytes, [height, width, channels] as the address says."""
    if request.headers.get("content-type") != "application/octet-stream":
        raise HTTPException(415, "send the pixels as application/octet-stream")
    shape = (_whole(request, "height", 1, 2048), _whole(request, "width", 1, 2048), _whole(request, "channels", 1, 3))
    size = shape[0] * shape[1] * shape[2]
    if size > MOST_BYTES:
        raise HTTPException(413, f"an image may have {MOST_BYTES:,} bytes, {'×'.join(map(str, shape))} are {size:,}")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > size:
            raise HTTPException(413, f"an image {'×'.join(map(str, shape))} has {size:,} bytes, these are more")
    if len(body) != size:
        raise HTTPException(400, f"an image {'×'.join(map(str, shape))} has {size:,} bytes, got {len(body):,}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _image(network: Network, pixels: NDArray[np.uint8], centre: bool) -> NDArray[np.uint8]:
    if pixels.shape[2] != network.channels:
        raise ValueError(f"the network takes images of {network.channels} channels, got {pixels.shape[2]}")
    if centre and network.channels != 1:
        raise ValueError("only drawings are centred, not images in colour")
    return fitted(pixels, network.size, centre)


# -- running ---------------------------------------------------------------------------------------


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1; port 0 is any free one. Raises OSError that says what to do if the port is taken."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise OSError(
            f"can't listen on {HOST}:{port}: {error.strerror}; choose another --port, or leave it out for a free one"
        ) from error


def _has_screen() -> bool:
    """Whether a browser would be a window: without one, webbrowser may start a text browser in this very terminal."""
    windows = sys.platform in ("win32", "darwin")
    return windows or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def serve(networks: Networks, backends: tuple[str, ...], backend: str, port: int, browser: bool) -> None:
    """Show the page until Ctrl-C."""
    with listen(port) as listening:
        port = listening.getsockname()[1]
        address = f"http://{HOST}:{port}/"
        shown = Page(networks, backends, backend)
        first = next(iter(networks.entries.values()))
        if not first.path.exists():
            print("training a first network, a LeNet-5 on 4,000 digits; the page shows how far it is")
            shown.train_first(first.path)
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if browser and _has_screen():
            webbrowser.open(address)
        config = uvicorn.Config(
            shown.app(port), log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=1,
            lifespan="off", ws="none",
        )  # fmt: skip
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
        print()
