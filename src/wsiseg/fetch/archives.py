"""Single files out of archives from outside: only what is asked for, and never more bytes than it may have.

Nothing is written under a name that an archive states, so a member called `../../x` has nowhere to go.
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from wsiseg.run.errors import DownloadError
from wsiseg.run.outputs import written_whole

_CHUNK = 1 << 20


def extract_member(archive: Path, member: str, path: Path, most: int) -> None:
    """Write one member of a zip file to `path`, whole or not at all.

    Args:
        archive: A zip file; wheels are such.
        member: The member's name in the archive.
        path: Where it goes.
        most: Bytes that the member may have.

    Raises:
        DownloadError: The archive is broken, has no such member, or a larger one than `most`.
    """
    with _readable(archive.name), zipfile.ZipFile(archive) as opened, opened.open(member) as source:
        _copy(source, path, most, archive.name)


def _copy(source: IO[bytes], path: Path, most: int, name: str) -> None:
    with written_whole(path) as partial, partial.open("wb") as target:
        count = 0
        while chunk := _read(source, name):
            count += len(chunk)
            if count > most:
                raise DownloadError(f"{name}: unpacks to more than the {most} bytes it should have", "do not trust it")
            target.write(chunk)


def _read(source: IO[bytes], name: str) -> bytes:
    with _readable(name):
        return source.read(_CHUNK)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise DownloadError(f"{name}: lacks the file that was expected in it") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{name}: a broken archive: {error}", "fetch it again") from error
