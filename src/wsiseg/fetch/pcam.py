"""PatchCamelyon from Zenodo: gzipped HDF5 files, pinned by size and hash (CC0)."""

from collections.abc import Sequence

from wsiseg.config.fetch import FetchPcamConfig
from wsiseg.fetch.batch import Outcome, fetch_all
from wsiseg.run.connection import USUAL, Patience, open_client
from wsiseg.run.download import Checksum, Wanted
from wsiseg.run.record import Progress
from wsiseg.tiles.pcam_files import BASE, FILES, PcamFile


def fetch_pcam(
    config: FetchPcamConfig,
    progress: Progress | None = None,
    patience: Patience = USUAL,
    files: Sequence[PcamFile] = FILES,
) -> list[Outcome]:
    """Fetch the images and labels of a split; `wsiseg evaluate --pcam` reads them as they are.

    Raises:
        DownloadError: The network settings cannot be used.
        OutputError: There is no room.
    """
    base = (config.mirror or BASE).rstrip("/")
    wanted = [
        Wanted(config.out / one.name, (f"{base}/{one.name}",), one.size, Checksum("sha256", one.sha256))
        for one in files
        if config.split == "all" or f"_split_{config.split}_" in one.name
    ]
    with open_client(patience) as client:
        return fetch_all(client, wanted, config.jobs, progress or Progress())
