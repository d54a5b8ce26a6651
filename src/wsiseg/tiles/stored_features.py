"""Features of the tiles of a slide, as other programs and wsiseg store them; wsiseg writes the first of these layouts.

| program | features | coords | tile |
|---|---|---|---|
| TRIDENT | `features` | level 0 | `patch_size_level0`, `patch_size` |
| CLAM | `features` | level 0 | `patch_size`, `downsample`, where the file has them at all |
| STAMP | `feats` | micrometers (`unit`) | `tile_size_um`, `tile_size_px` |
| slide2vec | `features` of an `.npz` | `x`, `y` at level 0, in `../tiles` | `tile_size_lv0`, `requested_tile_size_px` |

The first three are HDF5, whose attributes of the file or its data sets tell the tile. Features are [n, channels] or
[1, n, channels]. Sources: the readme of github.com/mahmoodlab/TRIDENT (coords with their attributes), that of
github.com/mahmoodlab/CLAM (h5_files), github.com/KatherLab/STAMP (its feature files), and docs/output-layout of
github.com/clemsgrs/slide2vec.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsiseg.run.errors import DAMAGED, UsageError, WsisegError
from wsiseg.run.outputs import written_whole
from wsiseg.slides.slide import SlideFacts
from wsiseg.tiles.hdf5_texts import read_texts
from wsiseg.tiles.store import Tiles

_PLACES = ("{}.h5", "h5_files/{}.h5", "{}.npz", "tile_embeddings/{}.npz")
_FEATURES, _ENCODERS = ("features", "feats"), ("encoder", "extractor", "encoder_name")
_TEXTS = ("unit", *_ENCODERS)
_MOST_BYTES = 2**34  # of the features of a slide
_NEAR = 1.25  # magnifications that are called alike differ by as much
_PARTS = (1, 2, 4, 8)  # of a tile, that corners may be multiples of
_SLACK_PX = 1.0  # of corners, which are rounded to level-0 pixels


class TileSize(NamedTuple):
    """Side of a tile in pixels, and micrometers per pixel."""

    px: int
    mpp: float

    def agrees(self, other: "TileSize") -> bool:
        """Tell whether tiles show as much tissue, as far as one magnification does."""
        return 1 / _NEAR <= self.px * self.mpp / (other.px * other.mpp) <= _NEAR

    def __str__(self) -> str:
        """Return it as messages say it."""
        return f"{self.px * self.mpp:.4g} um wide ({self.px} px of {self.mpp:.4g} um)"


@dataclass(frozen=True)
class StoredFeatures:
    """The tiles of a slide with their features."""

    tiles: Tiles
    features: NDArray[np.float32]  # float32[n, channels]
    encoder: str  # what made them, "" where nobody says

    @property
    def size(self) -> TileSize:
        """How large its tiles are."""
        return TileSize(self.tiles.tile_px, self.tiles.mpp)


def features_file(folder: Path, names: Sequence[str]) -> Path:
    """Find the features of a slide that may go by several names.

    Raises:
        UsageError: There are none.
    """
    found = [path for name in names for place in _PLACES if (path := folder / place.format(name)).is_file()]
    if found:
        return found[0]
    pickled = [name for name in names if (folder / f"{name}.pt").is_file()]
    if pickled:
        raise UsageError(f"{folder / pickled[0]}.pt: is a file of PyTorch", "store features as .h5 or .npz")
    raise UsageError(f"{folder}: no features of {names[0]}", f"put {names[0]}.h5 there, or take the slide out")


def read_features(path: Path, slide: SlideFacts, size: TileSize | None = None) -> StoredFeatures:
    """Read the features of a slide.

    Args:
        path: From `features_file`.
        slide: The slide that they are of.
        size: How large its tiles must be; what the file does not say is taken from it.

    Raises:
        UsageError: h5py is not installed, or nothing says how large tiles are.
        WsisegError: The file cannot be read, holds NaN, or does not fit the slide or the size.
    """
    features, coords, facts = _of_npz(path) if path.suffix == ".npz" else _of_hdf5(path)
    features = features[0] if features.ndim == 3 and len(features) == 1 else features  # noqa: PLR2004  [1, n, channels]
    if features.ndim != 2 or coords.shape != (len(features), 2) or not len(features):  # noqa: PLR2004  [n, channels]
        raise WsisegError(f"{path}: features {features.shape} and coords {coords.shape} do not belong together")
    if not np.isfinite(features).all():
        raise WsisegError(f"{path}: NaN or infinity in its features", "compute them again")
    mpp = np.asarray(slide.mpp)
    corners = coords / mpp if str(facts.get("unit", "")) == "um" else np.asarray(coords, np.float64)
    found = _size(path, facts, float(mpp[0])) or size
    if found is None:
        raise UsageError(f"{path}: does not say how large its tiles are", "set tile and mpp in the --config file")
    if size is not None and not found.agrees(size):
        raise WsisegError(f"{path}: its tiles are {found}, not {size}", "are pixel size and slide right?")
    if (corners < -found.px * found.mpp / mpp).any() or (corners >= slide.size_px).any():
        raise WsisegError(f"{path}: its tiles lie beyond the slide", "are its coords level-0 pixels of this slide?")
    encoder = next((str(facts[name]) for name in _ENCODERS if name in facts), "")
    return StoredFeatures(_placed(corners, found, slide), np.asarray(features, np.float32), encoder)


def write_features(path: Path, stored: StoredFeatures) -> None:
    """Write the features of a slide, whole or not at all.

    Raises:
        UsageError: h5py is not installed.
        OutputError: The file cannot be written.
    """
    tiles = stored.tiles
    width, height = tiles.slide.size_px
    facts = {
        "patch_size": tiles.tile_px,
        "patch_size_level0": tiles.grid.tile_level0[0],
        "overlap": tiles.tile_px - tiles.stride_px,
        "name": tiles.slide.file,
        "level0_width": width,
        "level0_height": height,
        "encoder": stored.encoder,
    }
    with written_whole(path) as partial, _h5py().File(partial, "w") as file:
        file["features"] = stored.features
        file["coords"] = tiles.corners
        file["coords"].attrs.update(facts)


def _size(path: Path, facts: Mapping[str, Any], mpp: float) -> TileSize | None:
    """Return how large tiles are, as far as a file says it, on a slide of `mpp` um per level-0 pixel."""
    try:
        number = {name: float(np.ravel(value)[0]) for name, value in facts.items() if _is_number(value)}
        downsample = number.get("downsample", 1.0 if number.get("patch_level") == 0 else 0.0)
        sides = {
            "tile_size_px": number.get("tile_size_um", 0.0),
            "requested_tile_size_px": number.get("tile_size_lv0", 0.0) * mpp,
            "patch_size": (number.get("patch_size_level0") or number.get("patch_size", 0.0) * downsample) * mpp,
        }
        found = [TileSize(int(number[px]), um / number[px]) for px, um in sides.items() if um > 0 and px in number]
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise WsisegError(f"{path}: its attributes are not those of tiles: {error}") from error
    return found[0] if found else None


def _is_number(value: Any) -> bool:  # noqa: ANN401  an attribute
    return np.asarray(value).dtype.kind in "iuf" and np.size(value) > 0


def _placed(corners: NDArray[np.float64], size: TileSize, slide: SlideFacts) -> Tiles:
    """Put tiles on the coarsest grid that all their corners lie on, with cells of an eighth of a tile at the finest."""
    side = size.px * size.mpp / np.asarray(slide.mpp)
    parts = [part for part in _PARTS if size.px % part == 0]
    off = [np.abs(corners - np.round(corners * part / side) * side / part).max() for part in parts]
    part = next((part for part, most in zip(parts, off, strict=True) if most <= _SLACK_PX), parts[-1])
    rounded = np.round(np.maximum(corners, 0)).astype(np.int32)
    inside = np.clip(np.asarray(slide.size_px) - rounded, 0, side) / side
    ones = np.ones(len(rounded), np.float32)
    area = float(len(np.unique(rounded, axis=0))) * (size.px * size.mpp) ** 2 / 1e6
    stride = size.px // part
    return Tiles(slide, rounded, ones, inside.prod(1).astype(np.float32), size.px, stride, size.mpp, round(area, 6))


def _of_hdf5(path: Path) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    library = _h5py()
    try:
        with library.File(path, "r") as file:
            name = next((name for name in _FEATURES if name in file), _FEATURES[0])
            sets = [_data_set(library, file, one, path) for one in (name, "coords")]
            facts = _facts(library, (file, *reversed(sets)), path)
            return sets[0][:], sets[1][:], facts
    except DAMAGED as error:
        raise WsisegError(f"{path}: cannot be read as HDF5: {error}", "compute the features again") from error


def _facts(library: Any, objects: Sequence[Any], path: Path) -> dict[str, Any]:  # noqa: ANN401  h5py's
    """Return the attributes that are numbers, and the texts that say something of tiles; the last object counts."""
    kinds = [(one, name, one.attrs.get_id(name).dtype) for one in objects for name in one.attrs]
    texts = {name: one for one, name, kind in kinds if name in _TEXTS and library.check_string_dtype(kind)}
    facts = {name: one.attrs[name] for one, name, kind in kinds if kind.kind in "biuf"}
    places = [(one.name, name) for name, one in texts.items()]
    return facts | dict(zip(texts, read_texts(path, places) if places else (), strict=True))


def _data_set(library: Any, file: Any, name: str, path: Path) -> Any:  # noqa: ANN401  h5py's
    """Return a data set that lies in the file itself and is no larger than memory bears."""
    if not isinstance(file.get(name, getlink=True), library.HardLink):
        raise WsisegError(f"{path}: holds no data set {name}", "is it a file of features?")
    found = file[name]
    if not isinstance(found, library.Dataset) or found.is_virtual or found.external or found.dtype.kind not in "iuf":
        raise WsisegError(f"{path}: {name} lies in other files or holds no numbers", "store it whole")
    if found.size * 4 > _MOST_BYTES:
        raise WsisegError(f"{path}: its {name} of shape {found.shape} are larger than any slide's", "check the file")
    return found


def _of_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    places = path.parent.parent / "tiles" / f"{path.stem}.coordinates.npz"
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(one.file_size for one in packed.infolist()) > _MOST_BYTES:
                raise WsisegError(f"{path}: unpacks to more than the features of any slide", "check the file")
        # Opened here, as NumPy leaves a file open that turns out to be damaged.
        with path.open("rb") as packed_file, places.open("rb") as packed_places:
            file, where = (np.load(one, allow_pickle=False) for one in (packed_file, packed_places))
            facts = json.loads(path.with_suffix(".meta.json").read_text(encoding="utf-8"))
            return file["features"], np.stack([where["x"], where["y"]], 1), facts
    except DAMAGED as error:
        raise WsisegError(f"{path}: not features as slide2vec stores them: {error}", "keep its tiles folder") from error


def _h5py() -> Any:  # noqa: ANN401  hardly typed
    try:
        import h5py  # noqa: PLC0415  an extra, and heavy
    except ImportError as error:
        raise UsageError("stored features need h5py", "pip install 'wsiseg[features]'") from error
    return h5py
