"""DICOM slides written from arrays, level by level, of any downsample."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

TILE_PX = 256
ORIGIN_MM = (10.0, 20.0)
WHOLE_SLIDE = UID("1.2.840.10008.5.1.4.1.1.77.1.6")


def write_dicom_slide(
    folder: Path,
    levels: Sequence[NDArray[np.uint8]],
    *,
    mpp: float = 0.5,
    flavor: str = "VOLUME",
    **attributes: Any,
) -> list[Path]:
    """Write a series of uncompressed, tiled images, one for each level, and return its files, finest first.

    Args:
        folder: Where to write.
        levels: uint8[height, width, 3], finest first.
        mpp: Micrometers per level-0 pixel.
        flavor: The third value of the image type.
        **attributes: Of every image, as `StudyInstanceUID`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared = _shared(attributes)
    files = []
    for number, picture in enumerate(levels):
        image = _image(picture, mpp * levels[0].shape[1] / picture.shape[1] / 1000)
        image.ImageType = ["ORIGINAL", "PRIMARY", flavor, "RESAMPLED" if number else "NONE"]
        image.InstanceNumber = number + 1
        image.update(shared)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID
        files.append(folder / f"{image.SOPInstanceUID}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    return files


def in_parts(file: Path, count: int = 2) -> list[Path]:
    """Replace an image by a concatenation: files that hold a share of its frames each (DICOM PS3.3 C.7.6.16.2.2.4)."""
    whole = dcmread(file)
    frames, size, uid = int(whole.NumberOfFrames), len(whole.PixelData) // int(whole.NumberOfFrames), generate_uid()
    bounds = [frames * part // count for part in range(count + 1)]
    files = []
    for number, (first, last) in enumerate(pairwise(bounds), 1):
        part = deepcopy(whole)
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        part.ConcatenationUID, part.SOPInstanceUIDOfConcatenationSource = uid, whole.SOPInstanceUID
        part.InConcatenationNumber, part.InConcatenationTotalNumber = number, count
        part.ConcatenationFrameOffsetNumber, part.NumberOfFrames = first, last - first
        part.PixelData = whole.PixelData[first * size : last * size]
        files.append(file.with_stem(f"{file.stem}.{number}"))
        part.save_as(files[-1], enforce_file_format=True)
    file.unlink()
    return files


def _shared(attributes: dict[str, Any]) -> Dataset:
    said = {
        "SOPClassUID": WHOLE_SLIDE,
        "Modality": "SM",
        "PatientName": "Secret^Name",
        "PatientID": "SECRET-ID",
        "PatientBirthDate": "19500102",
        "PatientSex": "O",
        "AccessionNumber": "SECRET-AN",
        "StudyID": "1",
        "StudyDate": "20260102",
        "StudyTime": "101112",
        "ReferringPhysicianName": "",
        "SeriesNumber": 1,
        "Manufacturer": "made",
        "ContainerIdentifier": "c",
        "FocusMethod": "AUTO",
        "ContainerTypeCodeSequence": [],
        "IssuerOfTheContainerIdentifierSequence": [],
        "SpecimenDescriptionSequence": [_specimen()],
        "AcquisitionDateTime": "20260102101112",
    }
    shared = Dataset()
    for uid in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(shared, uid, generate_uid())
    for name, value in {**said, **attributes}.items():
        setattr(shared, name, value)
    return shared


def _image(picture: NDArray[np.uint8], spacing_mm: float) -> Dataset:
    height, width, _ = picture.shape
    down, across = -(-height // TILE_PX), -(-width // TILE_PX)
    padded = np.pad(picture, [(0, down * TILE_PX - height), (0, across * TILE_PX - width), (0, 0)])
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = WHOLE_SLIDE
    image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = width, height
    image.TotalPixelMatrixFocalPlanes = 1
    image.Rows = image.Columns = TILE_PX
    image.NumberOfFrames = down * across
    image.DimensionOrganizationType = "TILED_FULL"
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    image.NumberOfOpticalPaths = 1
    image.OpticalPathSequence = [_item(OpticalPathIdentifier="0")]
    image.ImagedVolumeWidth, image.ImagedVolumeHeight = width * spacing_mm, height * spacing_mm
    x, y = ORIGIN_MM
    image.TotalPixelMatrixOriginSequence = [_item(XOffsetInSlideCoordinateSystem=x, YOffsetInSlideCoordinateSystem=y)]
    measures = _item(PixelSpacing=[f"{spacing_mm:.10f}"] * 2, SliceThickness=0.001)
    image.SharedFunctionalGroupsSequence = [_item(PixelMeasuresSequence=[measures])]
    tiles = padded.reshape(down, TILE_PX, across, TILE_PX, 3).swapaxes(1, 2)
    image.PixelData = tiles.tobytes()
    return image


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for name, value in attributes.items():
        setattr(item, name, value)
    return item


def _specimen() -> Dataset:
    specimen = _item(SpecimenIdentifier="s", SpecimenUID=generate_uid())
    specimen.IssuerOfTheSpecimenIdentifierSequence, specimen.SpecimenPreparationSequence = [], []
    return specimen
