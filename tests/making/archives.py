"""A real archive: Orthanc with its DICOMweb plug-in on loopback, and a wire to it that can be cut."""

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from making.servers import write_certificate
from making.waiting import wait_until

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
LOGIN = ("me", "secret")
_CHUNK = 1 << 14
_PASSED = {"Accept", "Authorization", "Content-Type"}


@dataclass(frozen=True)
class Archive:
    """A running archive."""

    host: str  # with its port
    scheme: str = "http"

    @property
    def root(self) -> str:
        return f"{self.scheme}://{self.host}/dicom-web"

    def instances(self) -> list[str]:
        """Return Orthanc's own names of all that it holds."""
        return [str(name) for name in httpx.get(f"http://{self.host}/instances", auth=LOGIN).json()]

    def is_there(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://{self.host}/instances", auth=LOGIN).is_success
        return False

    def add(self, *files: Path) -> None:
        for file in files:
            httpx.post(f"http://{self.host}/instances", content=file.read_bytes(), auth=LOGIN).raise_for_status()

    def get(self, path: str) -> bytes:
        return httpx.get(f"http://{self.host}/{path}", auth=LOGIN).raise_for_status().content

    def clear(self) -> None:
        for name in self.instances():
            httpx.delete(f"http://{self.host}/instances/{name}", auth=LOGIN)


@contextmanager
def orthanc(folder: Path) -> Iterator[Archive]:
    """Run Orthanc on a free port with an empty store; the test is skipped where it is not installed."""
    program = shutil.which("Orthanc")
    if program is None or not PLUGIN.exists():
        pytest.skip("needs Orthanc: apt-get install orthanc orthanc-dicomweb")
    for _ in range(3):  # a port that is free may be taken by another process a moment later
        if (started := _started(program, folder)) is not None:
            break
    else:
        pytest.fail((folder / "log").read_text())
    process, archive = started
    try:
        yield archive
    finally:
        process.terminate()
        process.wait(60)


def _started(program: str, folder: Path) -> "tuple[subprocess.Popen[bytes], Archive] | None":
    """Start it on a port that is free; None where it ended at once."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": dict([LOGIN]),
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    archive = Archive(f"127.0.0.1:{port}")
    wait_until(lambda: process.poll() is not None or archive.is_there())
    return (process, archive) if process.poll() is None else None


@contextmanager
def cut_after(archive: Archive, sent: int | None = None, received: int | None = None) -> Iterator[Archive]:
    """Yield an address of the archive that passes so many bytes to it or from it, and then is gone for good."""
    left = {"sent": sent, "received": received}
    opened: list[socket.socket] = []
    host, port = archive.host.split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while chunk := source.recv(_CHUNK):
                rest = left[way]
                if rest is not None:
                    chunk, left[way] = chunk[:rest], max(0, rest - len(chunk))
                target.sendall(chunk)
                if left[way] == 0:
                    listener.close()
                    break
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client = listener.accept()[0]
                server = socket.create_connection((host, int(port)))
                opened.extend((client, server))
                for way in ((client, server, "sent"), (server, client, "received")):
                    threading.Thread(target=pass_on, args=way, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield Archive(f"127.0.0.1:{listener.getsockname()[1]}")
    finally:
        for one in (listener, *opened):
            one.close()


@contextmanager
def behind_tls(archive: Archive, folder: Path) -> Iterator[tuple[Archive, Path]]:
    """Yield an https address of the archive, and its certificate, which nobody else signed.

    A relay decrypts, as the Orthanc of Debian 12 ends with a fault at the first connection by TLS. Its address is not
    one that is asked by http.
    """
    certificate = write_certificate(folder, "127.0.0.2")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            passed = {name: value for name, value in self.headers.items() if name in _PASSED}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = httpx.request(self.command, f"http://{archive.host}{self.path}", headers=passed, content=body)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET  # noqa: N815  the name that the library looks for

    with ThreadingHTTPServer(("127.0.0.2", 0), Relay) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Archive(f"127.0.0.2:{server.server_port}", "https"), certificate
        server.shutdown()
