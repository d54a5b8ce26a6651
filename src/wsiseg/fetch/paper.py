"""The cohort of Lerousseau et al. 2020: their manifest, and the organ of each slide from its barcode.

The second part of a barcode names the source site, and a source site sent one kind of tumour: so the organ can be told
without asking anyone. Four slides are the exception; all counts together are those of the paper (breast 1979, kidney
2334, bronchus and lung 2168).
"""

from pathlib import Path

from wsiseg.fetch.manifest import Entry, read_manifest
from wsiseg.run.connection import Client, refuse_offline
from wsiseg.run.download import Checksum, Wanted, download
from wsiseg.run.outputs import scratch_folder

REPOSITORY = "https://raw.githubusercontent.com/MarvinLer/tcga_segmentation"
_COMMIT = "b294c53c7d951314a65e25f911200813e314ecdb"
_MAPS_COMMIT = "96c84d41c04b9c696e998a5641589f10be57f15c"
_MANIFEST = "data/manifest_tcga_frozen_slides_breast_kidney_lung.txt"
_SIZE = 1_002_966
_CHECKSUM = Checksum("sha256", "200dc6aa5e0efffc606865f6d11f48c50dcdff485d9b77512d8e1f4a689913e1")
BREAST, KIDNEY, LUNG = "Breast", "Kidney", "Bronchus and lung"

_SOURCES = {
    BREAST: """3C 4H 5L 5T A1 A2 A7 A8 AC AN AO AQ AR B6 BH C8 D8 E2 E9 EW GI GM HN JL LD LL LQ MS OK OL PE S3 UL UU V7
        W8 WT XX Z7""",
    KIDNEY: """2K 2Z 3Z 4A 5P 6D A3 A4 AK AL AS AT B0 B1 B2 B3 B4 B8 B9 BP BQ CJ CW CZ DV DW DZ EU EV F9 G6 G7 GK GL HE
        IA IZ J7 KL KM KN KO KV MH MM MW NP O9 P4 PJ Q2 SX T7 UN UW UZ V9 WN Y8""",
    LUNG: """05 18 21 22 33 34 35 37 38 39 43 44 46 49 4B 50 51 52 53 55 56 58 60 62 63 64 66 67 68 69 6A 70 71 73 75 77
        78 79 80 83 85 86 90 91 92 93 94 95 96 97 98 99 J1 J2 L3 L4 L9 LA MF MN MP NC NJ NK O1 O2 S2 XC""",
}
_SITE_OF_SOURCE = {source: site for site, sources in _SOURCES.items() for source in sources.split()}
_SITE_OF_CASE = {
    "TCGA-3H-AB3X": LUNG,  # mesothelioma
    "TCGA-FA-A7DS": BREAST,  # lymphoma
    "TCGA-HB-A3YV": KIDNEY,  # sarcoma
    "TCGA-WK-A8XT": KIDNEY,  # sarcoma
}


def paper_entries(client: Client, mirror: str | None, outputs: Path) -> list[Entry]:
    """Fetch the manifest of the paper.

    Raises:
        DownloadError: It cannot be had.
    """
    refuse_offline("the paper's manifest", "give a copy of it with --manifest")
    with scratch_folder(outputs) as folder:
        url = f"{mirror or REPOSITORY}/{_COMMIT}/{_MANIFEST}"
        wanted = Wanted(folder / "paper-manifest.tsv", (url,), _SIZE, _CHECKSUM)
        download(client, wanted)
        return read_manifest(wanted.path)


def maps_url(mirror: str | None) -> str:
    """Return the address of the published maps of probabilities."""
    return f"{mirror or REPOSITORY}/{_MAPS_COMMIT}/results/raw_probabilities"


def site(name: str) -> str:
    """Return the organ of a slide by the case or the source site in its name; empty where it is not of the paper's."""
    return _SITE_OF_CASE.get(name[: len("TCGA-3H-AB3X")]) or _SITE_OF_SOURCE.get(name[len("TCGA-") :][:2], "")
