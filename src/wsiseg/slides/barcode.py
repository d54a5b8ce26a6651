"""TCGA barcodes: what the name of a slide says of its case, its sample and its label.

A slide is called `TCGA-TSS-PART-SSV-PP-TSn[.uuid.svs]`: source site, participant, sample type and vial, portion, and
TS, BS or MS (top, bottom, middle; flash-frozen) or DX (diagnostic, formalin-fixed) with a number or letter.
Source: the GDC's table of sample type codes.
"""

import re
from typing import Literal

from wsiseg.run.errors import UsageError

_SLIDE = re.compile(
    r"(?P<slide>(?P<sample>(?P<case>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-(?P<code>[0-9]{2})[A-Z])-[0-9]{2}"
    r"-(?:TS|BS|MS|DX)[A-Z0-9]+)(?![A-Za-z0-9-])"
)
_TUMOR, _NORMAL = range(1, 10), range(10, 15)
_REFUSED = {
    **dict.fromkeys(["15", "16", "99"], "reserved"),
    "20": "control analyte",
    "40": "recurrent blood derived cancer, peripheral blood",
    "50": "cell line",
    "60": "primary xenograft",
    "61": "cell line derived xenograft",
}


def part(name: str, which: Literal["slide", "sample", "case", "code"]) -> str:
    """Return a part of a slide's name: `TCGA-BH-A0B7-11A-03-TSC`, `TCGA-BH-A0B7-11A`, `TCGA-BH-A0B7` or `11`.

    Raises:
        UsageError: The name does not begin with the barcode of a slide.
    """
    match = _SLIDE.match(name)
    if match is None:
        raise UsageError(f"{name}: does not begin with the barcode of a TCGA slide", "as in TCGA-BH-A0B7-11A-03-TSC")
    return match[which]


def label(name: str) -> int:
    """Return the label of a slide by its sample type: 1 for 01-09 (tumour), 0 for 10-14 (normal).

    Raises:
        UsageError: The name does not begin with the barcode of a slide, or its sample is neither: a control, a cell
            line, a xenograft or a reserved code is no evidence of normal tissue.
    """
    code = part(name, "code")
    if int(code) in {*_TUMOR, *_NORMAL}:
        return int(int(code) in _TUMOR)
    kind = _REFUSED.get(code, "unknown")
    raise UsageError(f"{name}: sample type {code} ({kind}) is neither tumour nor normal tissue", "leave it out")
