"""Runs of `wsiseg predict` over a few made slides, as a user starts them."""

import hashlib
import sys
from pathlib import Path

import numpy as np

from making.slides import write_slide


def write_slides(folder: Path, count: int, taller_px: int = 200) -> Path:
    """Write slides of noise, each taller than the one before."""
    for number in range(count):
        noise = np.random.default_rng(number).integers(60, 230, (900 + taller_px * number, 1100, 3)).astype(np.uint8)
        write_slide(folder / f"s{number}.tiff", noise, compression="jpeg")
    return folder


def command(slides: Path, model: Path, out: Path, *more: str) -> list[str]:
    """Give the command that maps the slides of a folder."""
    arguments = ["predict", str(slides), "--model", str(model), "--out", str(out), "--tissue", "none", "--csv", *more]
    return [sys.executable, "-m", "wsiseg", *arguments]


def digest(out: Path) -> dict[str, str]:
    """Give the hash of every file but the reports, which carry times and what became of slides."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    kept = [
        path
        for path in files
        if not path.name.startswith(("run", "report", "slides.csv")) and path.parent.name != ".thumbnails"
    ]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}
