"""What proves that files are still what was written: hashes of files, and of the record that lists them."""

import hashlib
import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel

from wsiseg.run.errors import UsageError

SEAL = "digest"
"""The field of a record that holds the hash of all its others."""
_NAMESPACE = "wsiseg"  # a signature of something else cannot pass for one of a run or a model


class Written(BaseModel, frozen=True):
    r"""What a file or a folder of files was when it was written.

    The hash of a folder is that of the lines that `sha256sum` prints for its files, in the order of their names:
    `find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum`.
    """

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> "Written":
        """Read all of a file or a folder; an OSError says that it cannot be read."""
        if not path.is_dir():
            with path.open("rb") as file:
                return cls(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=file.tell())
        names = sorted(one.relative_to(path).as_posix().encode() for one in path.rglob("*") if one.is_file())
        parts = [(name, cls.of(path / name.decode())) for name in names]
        lines = b"".join(part.sha256.encode() + b"  " + name + b"\n" for name, part in parts)
        return cls(sha256=hashlib.sha256(lines).hexdigest(), bytes=sum(part.bytes for _, part in parts))


def written(folder: Path, paths: Iterable[Path]) -> dict[str, Written]:
    """Return what files and folders in `folder` are, by their names in it; those that are not there are left out."""
    return {path.relative_to(folder).as_posix(): Written.of(path) for path in paths if path.exists()}


def differences(folder: Path, known: Mapping[str, Written]) -> Iterator[str]:
    """Name the files in a folder that are not what is known of them, and say what differs."""
    for name, before in known.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):  # a changed record must not lead elsewhere
            yield f"{name}: is no name of a file in this folder"
            continue
        try:
            now = Written.of(path)
        except OSError as error:
            yield f"{name}: is gone" if not path.exists() else f"{name}: cannot be read: {error.strerror}"
            continue
        if now.bytes != before.bytes:
            yield f"{name}: has {now.bytes:,} bytes, but {before.bytes:,} were written"
        elif now.sha256 != before.sha256:
            yield f"{name}: its content is not what was written (sha256 {now.sha256[:12]}, not {before.sha256[:12]})"


def signer(path: Path, allowed: Path) -> str:
    """Return who signed a file, of those that a file of allowed signers names; the signature lies beside it as `.sig`.

    Signatures are OpenSSH's (PROTOCOL.sshsig), of the namespace wsiseg.

    Raises:
        UsageError: There is no ssh-keygen, or no file of allowed signers.
        ValueError: The file is not signed by one of them; the message says why.
    """
    signature = path.with_name(f"{path.name}.sig")
    if not allowed.is_file():
        raise UsageError(f"{allowed}: there is no such file of allowed signers", "name one with --signed-by")
    if not signature.is_file():
        raise ValueError(f"{path.name}: is not signed, as there is no {signature.name}")
    given = ("-f", str(allowed.absolute()), "-s", str(signature.absolute()))
    try:
        found = _ssh_keygen("find-principals", *given)
        name = found.stdout.splitlines()[0].split(",")[0] if found.returncode == 0 else ""
        with path.open("rb") as file:
            done = _ssh_keygen("verify", *given, "-I", name, "-n", _NAMESPACE, content=file) if name else found
    except FileNotFoundError as error:
        raise UsageError("checking signatures needs ssh-keygen, which was not found", "install OpenSSH") from error
    if done.returncode:
        reason = (done.stderr + done.stdout).strip().splitlines() or ["no reason given"]
        raise ValueError(f"{path.name}: is not signed by one of {allowed.name}: {reason[-1]}")
    return name


def _ssh_keygen(what: str, *arguments: str, content: BinaryIO | None = None) -> "subprocess.CompletedProcess[str]":
    command = ["ssh-keygen", "-Y", what, *arguments]
    given = subprocess.DEVNULL if content is None else content
    return subprocess.run(command, stdin=given, capture_output=True, text=True, errors="replace", check=False)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record, any JSON object, with the hash of all its other fields; their order does not matter."""
    rest = {name: value for name, value in record.items() if name != SEAL}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, SEAL: hashlib.sha256(text.encode()).hexdigest()}


@dataclass(frozen=True)
class Findings:
    """What an examination found."""

    facts: dict[str, dict[str, Any]]  # names and values for a person, by what was examined
    problems: tuple[str, ...] = ()  # what must be mended
    page: str = ""  # of a model, for a person
    card: dict[str, Any] = field(default_factory=dict)  # what that page is made of

    @property
    def exit_code(self) -> int:
        """0 where nothing is wrong, else 1."""
        return 1 if self.problems else 0

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON, the card's fields among the facts of the model."""
        model = {"model": {**self.facts["model"], **self.card}} if self.card else {}
        return {**self.facts, **model, "problems": list(self.problems)}
