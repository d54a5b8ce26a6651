"""PatchCamelyon from Zenodo: gzipped HDF5 files, pinned by size and hash (CC0)."""

from collections.abc import Sequence

from wsiseg.config.fetch import FetchPcamConfig
from wsiseg.fetch.batch import Batch, Outcome, Wanted, Watcher
from wsiseg.fetch.connection import open_client
from wsiseg.fetch.http import Checksum, Remote
from wsiseg.fetch.patience import Patience
from wsiseg.tiles.pcam_files import BASE, FILES, PcamFile


def fetch_pcam(
    config: FetchPcamConfig,
    watcher: Watcher | None = None,
    patience: Patience | None = None,
    files: Sequence[PcamFile] = FILES,
) -> list[Outcome]:
    """Fetch the images and labels of a split; `wsiseg evaluate --pcam` reads them as they are.

    Args:
        config: The settings.
        watcher: Is told how it goes.
        patience: How often and how long to try.
        files: What there is.

    Returns:
        What became of each file.

    Raises:
        DownloadError: The network settings cannot be used.
        OutputError: There is no room.
    """
    patience = patience or Patience()
    base = (config.mirror or BASE).rstrip("/")
    chosen = [file for file in files if config.split == "all" or f"_split_{config.split}_" in file.name]
    remotes = [Remote(one.name, (f"{base}/{one.name}",), one.size, Checksum("sha256", one.sha256)) for one in chosen]
    wanted = [Wanted(remote, config.out / remote.name) for remote in remotes]
    with open_client(patience) as client:
        return Batch(client, patience, config.jobs, watcher or Watcher()).fetch(wanted)
