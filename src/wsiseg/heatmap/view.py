"""`wsiseg view`, a verb that lives with its noun: the maps of a folder in a local page, over slides in deep zoom.

Only who knows the token in the address is answered, and only from this machine: a request for another host (DNS
rebinding) or from another origin is refused. Slides are asked for by number, so no request names a file. Of slides only
their tissue is served, never the images of their labels.
"""

import contextlib
import io
import json
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import shapely
from PIL import Image

from wsiseg.annotations.classes import Classes
from wsiseg.annotations.truth import Reading, open_truth, truth_files
from wsiseg.config.predict import ViewConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.opening import kept_image, kept_picture, slide_of
from wsiseg.pages.pictures import palette
from wsiseg.run.errors import OutputError, UsageError, WsisegError
from wsiseg.run.record import SlideRecord, in_words, slides_of
from wsiseg.slides.slide import ASSUMED, Slide

_TILE_PX, _QUALITY = 256, 85
_MOST_CELLS = 4096  # of a side of a map; more cannot be seen
_FINEST_TRUTH = 8192  # corners of true outlines are dropped that lie closer than this part of the slide
_OPEN_SLIDES = 4
_FILES = {
    "": ("view.html", "text/html; charset=utf-8"),
    "view.js": ("view.js", "text/javascript; charset=utf-8"),
    "view.css": ("view.css", "text/css; charset=utf-8"),
    "openseadragon.min.js": ("openseadragon.min.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, max-age=3600",
}


@dataclass(frozen=True)
class Seen:
    """A slide that can be looked at: its map and, where they are at hand, its pixels, small picture and truth."""

    heatmap: Heatmap
    slide: Slide | None
    jpeg: Path  # the small picture that predict keeps
    truth: Path | None

    @cached_property
    def layers(self) -> int:
        """The number of the finest layer of deep zoom; of layer 0 the whole slide is one pixel."""
        return math.ceil(math.log2(max(self.heatmap.slide.shown_px[2:])))

    def tile(self, layer: int, column: int, row: int) -> bytes:
        """Return a tile of deep zoom as JPEG.

        Raises:
            LookupError: There is no such tile.
            WsisegError: It cannot be read.
        """
        left, top, *sides = self.heatmap.slide.shown_px
        if self.slide is None or not 0 <= layer <= self.layers or min(column, row) < 0:
            raise LookupError
        step = 2 ** (self.layers - layer)
        whole = [math.ceil(side / step) for side in sides]
        size = [min(_TILE_PX, side - at * _TILE_PX) for side, at in zip(whole, (column, row), strict=True)]
        if min(size) <= 0:
            raise LookupError
        corner = column * _TILE_PX, row * _TILE_PX
        small = kept_image(self.jpeg, max(whole))
        if small is not None:
            return _jpeg(small.resize((whole[0], whole[1])).crop((*corner, corner[0] + size[0], corner[1] + size[1])))
        out = np.empty((1, size[1], size[0], 3), np.uint8)
        self.slide.fill_scaled([(left + corner[0] * step, top + corner[1] * step)], out, (step, step))
        return _jpeg(Image.fromarray(out[0]))

    def facts(self) -> dict[str, Any]:
        """Return what the page draws with: sizes, the map's place and threshold, and the outline of the truth."""
        heatmap, slide = self.heatmap, self.heatmap.slide
        values, _, box = heatmap.shown(_MOST_CELLS)
        return {
            "is_there": self.slide is not None,
            "size": slide.shown_px[2:],
            "tile": _TILE_PX,
            "layers": self.layers,
            "um": None if slide.mpp_source == ASSUMED else slide.mpp[0],
            "cells": values.shape,
            "box": box,
            "threshold": heatmap.threshold,
            "warnings": [*heatmap.warnings, *([] if self.slide else ["the slide is not where it was: see --slides"])],
            **self._outline(),
        }

    def cells(self) -> bytes:
        """Return the map as float32, row by row: NaN where nobody looked, -1 where the tissue is unknown."""
        values, unknown, _ = self.heatmap.shown(_MOST_CELLS)
        return np.where(unknown, np.float32(-1), values).astype("<f4").tobytes()

    def _outline(self) -> dict[str, Any]:
        """Return the true tumour as an SVG path in level-0 pixels of what is shown, or why it cannot be read."""
        if self.truth is None:
            return {"truth": None}
        try:
            reading = Reading(Classes.of(self.heatmap.positive_class))
            area = open_truth(self.truth, self.heatmap.slide, reading).tumor.geometry
        except WsisegError as error:
            return {"truth": None, "truth_error": str(error)}
        left, top, *sides = self.heatmap.slide.shown_px
        rings = shapely.get_rings(shapely.get_parts(shapely.simplify(area, max(sides) / _FINEST_TRUTH)))
        lines = (np.round(shapely.get_coordinates(ring) - (left, top), 1).tolist() for ring in rings)
        return {"truth": "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in line) + "Z" for line in lines)}


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


class Gallery:
    """The slides of a folder that predict wrote; the last few stay open.

    Args:
        config: The folder, and where slides and truth lie.

    Raises:
        UsageError: There are no maps in the folder, or no such folder of truth.
    """

    def __init__(self, config: ViewConfig) -> None:
        self.config, self.truth = config, truth_files(config.truth) if config.truth else {}
        try:
            found = slides_of(config.folder)
        except (OSError, ValueError) as error:
            raise UsageError(f"{config.folder}: its run files cannot be read: {error}") from error
        # A changed run file must not lead elsewhere.
        self.records = [one for one in found if Path(one.slide).name == one.slide and self._map_of(one).is_dir()]
        if not self.records:
            raise UsageError(f"{config.folder}: no maps there", "give a folder that wsiseg predict wrote")
        several = next((one for one in self.records if len(one.by_class) > 1), None)
        if several is not None:
            text = f"{several.slide}: its map is of several classes, and view shows one"
            raise UsageError(text, "open it in QuPath or napari")
        self.open = lru_cache(maxsize=_OPEN_SLIDES)(self._open)
        with contextlib.suppress(WsisegError):
            self.open(0)  # so that it is there when the page asks for it

    def _map_of(self, record: SlideRecord) -> Path:
        return self.config.folder / f"{record.slide}.ome.zarr"

    def _picture_of(self, record: SlideRecord) -> Path:
        return kept_picture(self.config.folder, record.slide)

    def _open(self, number: int) -> Seen:
        record = self.records[number]
        heatmap, slides = Heatmap.open(self._map_of(record)), self.config.slides
        path = Path(record.path) if slides is None else slides / Path(record.path).name
        files = self.truth.get(record.slide, [])
        return Seen(heatmap, slide_of(heatmap.slide, path), self._picture_of(record), files[0] if files else None)

    def listed(self) -> dict[str, Any]:
        """Return what the list of slides shows, and the colours of maps."""
        names = ("slide", "status", "tumor_share", "unknown_share", "label", "split", "site")
        slides = [{name: getattr(record, name, None) for name in names} for record in self.records]
        word = in_words(next(iter(self.records[0].by_class)))
        folder = self.config.folder.resolve().name
        return {"folder": folder, "word": word, "slides": slides, "palette": palette().tolist()}

    def answer(self, path: str) -> tuple[bytes, str]:
        """Return the content of a path below the token, and its type.

        Raises:
            LookupError: There is nothing of this name.
            WsisegError: It cannot be read.
        """
        if path in _FILES:
            name, kind = _FILES[path]
            return resources.files("wsiseg.heatmap").joinpath(name).read_bytes(), kind
        if path == "slides.json":
            return json.dumps(self.listed()).encode(), "application/json"
        try:
            number, kind, *place = path.split("/")
            index, numbers = int(number), [int(one) for one in place]
        except ValueError as error:
            raise LookupError from error
        if not 0 <= index < len(self.records):
            raise LookupError
        if kind == "thumbnail.jpg" and not numbers:
            with contextlib.suppress(OSError):
                return self._picture_of(self.records[index]).read_bytes(), "image/jpeg"
            raise LookupError
        return _part(self.open(index), kind, numbers)


def _part(seen: Seen, kind: str, numbers: list[int]) -> tuple[bytes, str]:
    if kind == "facts.json" and not numbers:
        return json.dumps(seen.facts(), allow_nan=False).encode(), "application/json"
    if kind == "cells" and not numbers:
        return seen.cells(), "application/octet-stream"
    if kind == "tile" and len(numbers) == 3:  # noqa: PLR2004  layer, column and row
        return seen.tile(*numbers), "image/jpeg"
    raise LookupError


class ViewServer(ThreadingHTTPServer):
    """Serves a gallery on this machine alone; `address` is the page, with the token that every request needs.

    Raises:
        OutputError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, gallery: Gallery, port: int) -> None:
        self.gallery, self.token = gallery, secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise OutputError(f"port {port}: {error.strerror or error}", "give another --port, or 0 for any") from error
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self.address = f"http://127.0.0.1:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open from tile to tile
    server: ViewServer
    timeout = 60

    def do_GET(self) -> None:
        _, token, path = f"{urlsplit(self.path).path}//".split("/", 2)
        if not self._comes_from_here() or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._send(HTTPStatus.FORBIDDEN, b"refused", "text/plain")
            return
        try:
            self._send(HTTPStatus.OK, *self.server.gallery.answer(path[:-2] if path.endswith("//") else path[:-1]))
        except LookupError:
            self._send(HTTPStatus.NOT_FOUND, b"nothing of this name", "text/plain")
        except WsisegError as error:
            self._send(HTTPStatus.UNPROCESSABLE_ENTITY, str(error).encode(), "text/plain; charset=utf-8")

    def _comes_from_here(self) -> bool:
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        return host in self.server.hosts and origin in {None, f"http://{host}"} and site in {"none", "same-origin"}

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response_only(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  the signature of http.server
        """Say nothing of requests."""


@contextlib.contextmanager
def viewing(config: ViewConfig) -> Iterator[ViewServer]:
    """Yield a server of the maps in a folder; it answers while its `serve_forever` runs.

    Raises:
        UsageError: There are no maps in the folder, or no such folder of truth.
        OutputError: The port is taken.
    """
    server = ViewServer(Gallery(config), config.port)
    try:
        yield server
    finally:
        server.server_close()
