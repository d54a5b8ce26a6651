import hashlib
from pathlib import Path

import pytest

from making.servers import Server, made_file
from wsiseg.config.fetch import FetchPcamConfig
from wsiseg.fetch.pcam import fetch_pcam
from wsiseg.run.connection import Patience
from wsiseg.tiles.pcam_files import FILES, PcamFile

QUICK = Patience(tries=3, first_wait_s=0.001, longest_wait_s=0.004, read_s=20)


def serve(server: Server) -> list[PcamFile]:
    """Serve small files under the names of the real ones."""
    files = []
    for number, real in enumerate(FILES):
        content = made_file(number, 5000).content
        server.pages[f"/{real.name}"] = lambda handler, content=content: handler.answer(  # type: ignore[misc]  # a default binds it
            200, content, {"Content-Type": "application/octet-stream"}
        )
        files.append(PcamFile(real.name, len(content), hashlib.sha256(content).hexdigest()))
    return files


@pytest.mark.parametrize(("split", "count"), [("test", 2), ("train", 2), ("valid", 2), ("all", 6)])
def test_a_split_arrives_once(server: Server, tmp_path: Path, split: str, count: int) -> None:
    files = serve(server)
    config = FetchPcamConfig.checked(out=tmp_path, split=split, mirror=server.url + "/")
    first, again = (fetch_pcam(config, patience=QUICK, files=files) for _ in range(2))
    assert [one.status for one in first] == ["ok"] * count
    assert [one.status for one in again] == ["up_to_date"] * count
    assert {one.path.name for one in first} == {path.name for path in tmp_path.iterdir()}
    assert sum(server.requests.values()) == count


def test_a_file_that_is_not_the_published_one_is_refused(server: Server, tmp_path: Path) -> None:
    serve(server)
    outcomes = fetch_pcam(FetchPcamConfig(out=tmp_path, split="test", mirror=server.url), patience=QUICK)
    assert [one.status for one in outcomes] == ["failed", "failed"]
    assert "announced 5000 bytes rather than" in str(outcomes[0].error)
    assert not list(tmp_path.iterdir())
