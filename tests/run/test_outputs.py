import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from wsiseg.run.errors import OutputError
from wsiseg.run.outputs import scratch_folder, write_json, write_text, written_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_its_folder_with_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "ä\nb")
    assert path.read_bytes() == "ä\nb".encode()
    assert names(path.parent) == ["a.txt"]


def test_after_an_error_what_stood_there_stands_there_still(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError), written_whole(tmp_path / "a") as partial:
        partial.write_text("half" * 10_000 + "\ud800", encoding="utf-8")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with written_whole(tmp_path / "store") as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert names(tmp_path / "store") == ["two"]
    assert names(tmp_path) == ["store"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path, stop, seen = tmp_path / "run.json", threading.Event(), set()
    write_json(path, [0] * 2000)

    def read() -> None:
        while True:
            seen.add(len(set(json.loads(path.read_text()))))
            if stop.is_set():
                return

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        write_json(path, [number] * 2000)
    stop.set()
    reader.join()
    assert seen == {1}


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/a\.txt: cannot be written: .*; choose an --out that can be written"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError, match="No space left"), written_whole(tmp_path / "a"):
        Path("/dev/full").write_text("x" * 100_000)
    assert names(tmp_path) == []


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"odd\xff.svs")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["path"] == name


def test_what_is_no_number_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert names(tmp_path) == []


def test_a_scratch_folder_is_had_where_the_systems_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with scratch_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        assert folder.parent == tmp_path / "out"
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"), scratch_folder(tmp_path / "file"):
        pass


LOCK = """
import resource, sys, filelock
from pathlib import Path
from wsiseg.run.outputs import locked
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**20 * int(sys.argv[1]),) * 2)
try:
    with locked(Path(sys.argv[2])): print("held")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system bounds the memory of a process so")
@pytest.mark.parametrize(("room_mb", "said"), [(10, "can't start new thread"), (60, "held")])
def test_no_lock_waits_for_a_thread_that_cannot_take_its_first_step(tmp_path: Path, room_mb: int, said: str) -> None:
    """The stack of the thread would fit alone; then it would die without a word, or not, by chance."""
    command = [sys.executable, "-c", LOCK, str(room_mb), str(tmp_path / "lock")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == f"{said}\n"
    assert names(tmp_path) == []
