"""The files of PatchCamelyon: names, sizes and checksums.

Source: https://zenodo.org/records/2546921 (CC0). Sizes and SHA-256 are those that TensorFlow Datasets pins for these
addresses; the MD5 sums are those of torchvision. The README of basveeling/pcam has the MD5 sums of valid and test
swapped.
"""

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
BASE = "https://zenodo.org/records/2546921/files/"
PATCHES: dict[Split, int] = {"train": 262144, "valid": 32768, "test": 32768}
"""How many patches a split has."""


@dataclass(frozen=True)
class PcamFile:
    """A file as it is published, gzipped.

    Attributes:
        name: Its name, which ends in `.h5.gz`.
        size: In bytes.
        md5: Of the gzipped file.
        sha256: Of the gzipped file.
    """

    name: str
    size: int
    md5: str
    sha256: str


def name(split: Split, part: Literal["x", "y"]) -> str:
    """Return the name of the images (x) or labels (y) of a split, without `.gz`."""
    return f"camelyonpatch_level_2_split_{split}_{part}.h5"


_PUBLISHED = """
train x 6421353462 1571f514728f59376b705fc836ff4b63 d619e741468a7ab35c7e4a75e6821b7e7e6c9411705d45708f2a0efc8960656c
train y 21378 35c2d7259d906cfc8143347bb8e05be7 b74126d2c01b20d3661f9b46765d29cf4e4fba6faba29c8e0d09d406331ab75a
valid x 805965320 d5b63470df7cfa627aeec8b9dc0c066e f82ee1670d027b4ec388048d9eabc2186b77c009655dae76d624c0ecb053ccb2
valid y 3038 2b85f58b927af9964a4c15b8f7e8f179 ce1ae30f08feb468447971cfd0472e7becd0ad96d877c64120c72571439ae48c
test x 800875929 d8c2d60d490dbd479f8199bdfa0cf6ec 79174c2201ad521602a5888be8f36ee10875f37403dd3f2086caf2182ef87245
test y 3040 60a7035772fbdb7f34eb86d4420cf66a 0a522005fccc8bbd04c5a117bfaf81d8da2676f03a29d7499f71d0a0bd6068ef
"""  # split, part, bytes, MD5, SHA-256
FILES = tuple(
    PcamFile(f"camelyonpatch_level_2_split_{split}_{part}.h5.gz", int(size), md5, sha256)
    for split, part, size, md5, sha256 in map(str.split, _PUBLISHED.split("\n")[1:-1])
)
