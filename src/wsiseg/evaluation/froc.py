"""Free-response ROC: are single lesions found, at how many false alarms a slide.

The constants are those of the CAMELYON16 challenge: outlines closer than 75 um are one lesion; lesions no longer than
275 um (isolated tumour cells) count neither as found nor as missed; the score is the mean sensitivity at 1/4, 1/2, 1,
2, 4 and 8 false alarms a slide. A heatmap has no single detections, so each local maximum is one: a cell that no cell
within 75 um exceeds. It finds the lesions that the cell touches. In unknown tissue there is no detection, and a lesion
that lies in it by half or more counts neither as found nor as missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.coverage import Area
from wsiseg.annotations.coverage import outlines as outlines_of
from wsiseg.heatmap.heatmap import Heatmap

REACH_UM = 75.0
ISOLATED_UM = 275.0
_HALF = 0.5
_DETAIL_UM = 2.0  # finer detail of an outline cannot matter at the reach above
FALSE_ALARMS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False alarms a slide at which the sensitivity is read."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lesions:
    """What was found on one slide."""

    found: Floats  # float64[lesions], the highest score of a detection in each lesion; -1 where there is none
    false_alarms: Floats  # float64[n], the scores of the detections in no lesion
    unjudged: int = 0  # how many further lesions lie in unknown tissue


def find_lesions(heatmap: Heatmap, tumor: Area, ignored_share: Floats) -> Lesions:
    """Compare the local maxima of a heatmap with the lesions of its slide.

    A detection in a cell half of which is left out (`ignored_share`, float64[rows, columns]) is none.
    """
    import shapely  # noqa: PLC0415  heavy: only where lesions are looked for

    mpp = max(heatmap.slide.mpp)
    outlines = shapely.simplify(shapely.get_parts(tumor.geometry), _DETAIL_UM / mpp)
    lesions = shapely.get_parts(shapely.union_all(shapely.buffer(outlines, REACH_UM / 2 / mpp, quad_segs=4)))
    lesions = lesions[~shapely.is_empty(lesions)]
    corners = shapely.get_coordinates(shapely.minimum_rotated_rectangle(lesions)).reshape(-1, 5, 2)
    counted = np.linalg.norm(np.diff(corners, axis=1), axis=2).max(1, initial=0) * mpp >= ISOLATED_UM
    boxes, scores = _detections(heatmap, ignored_share)
    which, lesion = shapely.STRtree(lesions).query(boxes, predicate="intersects")
    found = np.full(len(lesions), -1.0)
    np.maximum.at(found, lesion, scores[which])
    unknown = shapely.union_all(outlines_of(heatmap.unknown, heatmap.cell_level0))
    judged = shapely.area(shapely.intersection(lesions, unknown)) < _HALF * shapely.area(lesions)
    return Lesions(found[counted & judged], np.delete(scores, which), int(np.count_nonzero(counted & ~judged)))


def _detections(heatmap: Heatmap, ignored_share: Floats) -> tuple[NDArray[Any], Floats]:
    """Return the cells that are local maxima, as shapely boxes in level-0 pixels, and their scores.

    Of a plateau of equal cells only the first counts.
    """
    import shapely  # noqa: PLC0415  heavy: only where lesions are looked for
    from scipy import ndimage  # noqa: PLC0415  heavy: only where lesions are looked for

    values = np.where(heatmap.judged, heatmap.probabilities, 0)
    window = 2 * max(1, round(REACH_UM / heatmap.cell_um)) + 1
    peaks = (values > 0) & (values == ndimage.maximum_filter(values, window))
    labels, count = ndimage.label(peaks, structure=np.ones((3, 3)))
    first = np.unique(labels, return_index=True)[1][-count:] if count else np.empty(0, np.intp)
    rows, columns = np.unravel_index(first[ignored_share.ravel()[first] < _HALF], values.shape)
    x, y = heatmap.edges()
    boxes = shapely.box(x[columns], y[rows], x[columns + 1], y[rows + 1])
    return boxes, values[rows, columns].astype(np.float64)


def froc(slides: Sequence[Lesions]) -> tuple[Floats, Floats] | None:
    """Return ascending false alarms a slide and the sensitivity at each, float64[n]; None where there is no lesion."""
    found = np.concatenate([*(slide.found for slide in slides), np.empty(0)])
    if not len(found):
        return None
    alarms = np.sort(np.concatenate([slide.false_alarms for slide in slides]))
    thresholds = np.unique(np.concatenate([found[found >= 0], alarms]))[::-1]
    sensitivity = (np.sort(found).searchsorted(thresholds) - len(found)) / -len(found)
    per_slide = (len(alarms) - alarms.searchsorted(thresholds)) / len(slides)
    return np.append(0.0, per_slide), np.append(0.0, sensitivity)


def lesion_measures(slides: Sequence[Lesions]) -> dict[str, Any] | None:
    """Return the free-response ROC over slides with lesions; None where there are none.

    Lesions that were not judged are neither found nor missed; where there are no others the score is None.
    """
    curve = froc(slides)
    count, unjudged = sum(len(one.found) for one in slides), sum(one.unjudged for one in slides)
    at = {f"{alarms:g}": float(np.interp(alarms, *curve)) for alarms in FALSE_ALARMS} if curve else {}
    score = float(np.mean(list(at.values()))) if at else None
    measures = {"score": score, "sensitivity_at": at, "lesions": count, "unjudged": unjudged, "slides": len(slides)}
    return measures if count + unjudged else None
