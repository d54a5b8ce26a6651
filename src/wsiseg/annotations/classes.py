"""What the classes of outlines and the labels of masks mean, by the names that people and programs give them."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import shapely

from wsiseg.annotations.coverage import Polygons, Truth
from wsiseg.annotations.outlines import AnnotationError, Drawn, Outline
from wsiseg.run.errors import shortened

Meaning = Literal["tumor", "hole", "ignored", "other", "unknown"]

_NAMES: dict[Meaning, str] = {
    "tumor": "_0, _1, adenocarcinoma, cancer, cancerous, carcinoma, invasive, invasive carcinoma, invasive tumor,"
    " lesion, malignancy, malignant, metastases, metastasis, metastatic, neoplasm, neoplastic, positive, tumor,"
    " tumor area, tumor cells, tumor epithelium, tumor region, tumor tissue",
    "hole": "_2, benign, exclude, excluded, exclusion, healthy, hole, negative, no tumor, non tumor, nontumor, normal,"
    " normal tissue, not tumor",
    "ignored": "ignore, ignore*, ignored, unknown",
    "other": "adipose, artefact, artifact, background, blood, connective tissue, fat, glass, immune, immune cells,"
    " inflammation, lymphocytes, mucin, mucosa, mucus, muscle, necrosis, other, pen, region*, stroma, tissue",
}
_MEANINGS = {name: meaning for meaning, names in _NAMES.items() for name in names.split(", ")}
_NOT_TISSUE = frozenset(["artefact", "artifact", "exclude", "excluded", "exclusion", "hole", "pen"])
_CHOOSE = "name the classes that mean tumour with tumor-class in the --config file"
_SHOWN = 8


def plain(name: str) -> str:
    """Return a name without what writers differ in: capitals, spaces, hyphens, British spelling."""
    text = re.sub(r"(?<!^)[\s_-]+", " ", name.strip().casefold()).strip()
    return text.replace("tumour", "tumor")


def is_usual(name: str) -> bool:
    """Tell whether a name is that of a class whose meaning is known."""
    return _first_known(name) in _MEANINGS


def is_cut(outline: Outline) -> bool:
    """Tell whether an outline says which part of a region or of tissue is not meant."""
    name = _first_known(outline.class_name or outline.name)
    return outline.is_negative or name in _NOT_TISSUE or _MEANINGS.get(name) == "ignored"


def _first_known(name: str) -> str:
    """Return a class in plain form, or the class that it is derived from: `tumor` of `Tumor: Positive`."""
    whole, base = plain(name), plain(name.partition(":")[0])
    return base if whole not in _MEANINGS and base in _MEANINGS else whole


@dataclass(frozen=True)
class Classes:
    """Which classes mean what, where the usual names are not to be relied on.

    Names are compared without regard to capitals, spaces, hyphens and British spelling; a class that QuPath derived
    from another (`Tumor: Positive`) means what its base means unless it is named itself.
    """

    # Names that count as tumour. Where there are none, the usual names do, and outlines without a class.
    tumor: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()  # further names that cut a hole
    ignored: tuple[str, ...] = ()  # further names whose areas are left out of all measures

    @classmethod
    def of(cls, name: str, every: Sequence[str] = ()) -> Self:
        """Return how the outlines of one class are told, into which those of the others of `every` cut holes."""
        means_tumor = _MEANINGS.get(_first_known(name)) == "tumor"
        return cls(() if means_tumor else (plain(name),), tuple(other for other in every if other != name))

    def meaning(self, name: str) -> Meaning:
        """Say what a class means; one without a name means tumour unless classes are named."""
        by_worth: tuple[tuple[Meaning, tuple[str, ...]], ...]
        by_worth = (("tumor", self.tumor), ("hole", self.negative), ("ignored", self.ignored))
        chosen = {plain(one): meaning for meaning, names in by_worth for one in names}
        for text in (plain(name), plain(name.partition(":")[0])):
            if text in chosen:
                return chosen[text]
        if not name.strip():
            return "other" if self.tumor else "tumor"
        usual = _MEANINGS.get(_first_known(name), "unknown")
        return "other" if self.tumor and usual in {"tumor", "unknown"} else usual

    def absent(self, found: Iterable[str]) -> tuple[str, ...]:
        """Return the names given here that none of these classes has, nor is derived from."""
        known = {plain(text) for name in found for text in (name, name.partition(":")[0])}
        return tuple(name for name in (*self.tumor, *self.negative, *self.ignored) if plain(name) not in known)

    def meaning_of(self, outline: Outline) -> Meaning:
        """Say what an outline means: by its class or, where it has none, by a name that is a class."""
        if outline.is_negative:
            return "hole"
        by_name = self.meaning(outline.name)
        return by_name if not outline.class_name and by_name != "unknown" else self.meaning(outline.class_name)


def marked(file: str, found: Drawn, classes: Classes) -> Truth:
    """Put the outlines of a file together: the largest is laid first, so what is nested in another decides there.

    What is ignored is ignored whatever is drawn in it.

    Raises:
        AnnotationError: There are classes whose meaning is not known, and none that is known as tumour.
    """
    pairs = [(one, classes.meaning_of(one)) for one in found.outlines]
    unknown = Counter(one.class_name for one, meaning in pairs if meaning == "unknown")
    tumor = [one for one, meaning in pairs if meaning == "tumor"]
    unnamed = [one for one in tumor if not (classes.tumor or one.class_name or is_usual(one.name))]
    if unknown and len(unnamed) == len(tumor):
        raise unknown_classes(file, unknown)
    notes = [f"{count} outlines of class {name} do not count as tumour" for name, count in unknown.items()]
    notes += [f"{len(unnamed)} outlines without a class count as tumour"] if unnamed else []
    ignored = shapely.union_all([one.polygon for one, meaning in pairs if meaning == "ignored"])
    layers = [(one.polygon, meaning == "tumor") for one, meaning in pairs if meaning in {"tumor", "hole"}]
    try:
        area = shapely.difference(_layered(layers), ignored)
    except shapely.GEOSException as error:
        raise AnnotationError(f"{file}: its outlines cannot be put together: {error}", "draw them again") from error
    named = frozenset(one.class_name or one.name for one in found.outlines) - {""}
    notes = [f"{file}: {note}; {_CHOOSE}" for note in notes]
    return Truth(Polygons(area), Polygons(ignored), (*found.notes, *notes), named)


def _layered(layers: list[tuple[Any, bool]]) -> Any:  # noqa: ANN401  shapely geometries
    """Lay polygons over each other, the largest first; those that do not count cut."""
    area = shapely.MultiPolygon()
    layers = sorted(layers, key=lambda layer: -layer[0].area)
    for counts, group in itertools.groupby(layers, key=lambda layer: layer[1]):
        together = shapely.union_all([polygon for polygon, _ in group])
        area = area.union(together) if counts else area.difference(together)
    return area


def unknown_classes(file: str, classes: Iterable[str]) -> AnnotationError:
    """Make the error for a file all of whose classes could mean anything."""
    names = ", ".join(shortened(sorted(classes), _SHOWN))
    return AnnotationError(f"{file}: nothing is of a class known as tumour, but of {names}", _CHOOSE)
