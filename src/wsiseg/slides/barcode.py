"""TCGA barcodes: what the name of a slide says of its case, its sample and its label.

A slide is called `TCGA-TSS-PART-SSV-PP-TSn[.uuid.svs]`: source site, participant, sample type and vial, portion, and
TS, BS or MS (top, bottom, middle; flash-frozen) or DX (diagnostic, formalin-fixed) with a number or letter.
Source: the GDC's table of sample type codes. All functions raise a `UsageError` for a name that does not begin so.
"""

import re

from wsiseg.run.errors import UsageError

_SLIDE = re.compile(
    r"(?P<sample>(?P<case>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})-(?P<code>[0-9]{2})[A-Z])-[0-9]{2}"
    r"-(?:TS|BS|MS|DX)[A-Z0-9]+(?![A-Za-z0-9-])",
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


def case(name: str) -> str:
    """Return the case (patient) of a slide, as `TCGA-BH-A0B7`."""
    return _parsed(name)["case"]


def sample(name: str) -> str:
    """Return the sample of a slide, as `TCGA-BH-A0B7-11A`."""
    return _parsed(name)["sample"]


def slide(name: str) -> str:
    """Return the barcode alone, as `TCGA-BH-A0B7-11A-03-TSC`."""
    return _parsed(name)[0]


def sample_code(name: str) -> str:
    """Return the two digits of the sample type, as `11`."""
    return _parsed(name)["code"]


def label(name: str) -> int:
    """Return the label of a slide by its sample type: 1 for 01-09 (tumour), 0 for 10-14 (normal).

    Raises:
        UsageError: The name does not begin with the barcode of a slide, or its sample is neither: a control, a cell
            line, a xenograft or a reserved code is no evidence of normal tissue.
    """
    code = sample_code(name)
    if int(code) in _TUMOR or int(code) in _NORMAL:
        return int(int(code) in _TUMOR)
    kind = _REFUSED.get(code, "unknown")
    raise UsageError(f"{name}: sample type {code} ({kind}) is neither tumour nor normal tissue", "leave it out")


def _parsed(name: str) -> re.Match[str]:
    match = _SLIDE.match(name)
    if match is None:
        raise UsageError(f"{name}: does not begin with the barcode of a TCGA slide", "as in TCGA-BH-A0B7-11A-03-TSC")
    return match
