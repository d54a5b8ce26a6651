import csv
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from making.servers import FAULTS, Server, Stored, made_file
from making.waiting import LONGEST_S, wait_until
from wsiseg.config.fetch import FetchTcgaConfig
from wsiseg.fetch.manifest import Entry, read_manifest, write_manifest
from wsiseg.fetch.tcga import TcgaResult, fetch_tcga
from wsiseg.run.connection import Patience
from wsiseg.run.errors import DownloadError, OutputError, UsageError
from wsiseg.slides.cohort import Cohort

QUICK = Patience(tries=4, first_wait_s=0.001, longest_wait_s=0.004, read_s=20, connect_s=20, slowest=1)
HASTY = replace(QUICK, read_s=1)  # with a server that stalls


def fetch(server: Server, out: Path, patience: Patience = QUICK, **settings: Any) -> TcgaResult:
    config = FetchTcgaConfig(out=out, mirror=server.url, s3_mirror=server.url, **settings)
    return fetch_tcga(config, patience=patience)


def entry(stored: Stored) -> Entry:
    return Entry(stored.id, stored.name, stored.md5, len(stored.content))


def assert_nothing_wrong(server: Server, out: Path, result: TcgaResult) -> None:
    """Every slide is there with the right bytes, or named as failed and not there at all."""
    failed = {problem["file"] for problem in result.failed}
    by_name = {stored.name: stored for stored in server.files.values()}
    for name, stored in by_name.items():
        path = out / name
        assert path.exists() != (name in failed)
        if path.exists():
            assert hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == stored.md5
    assert {path.name for path in out.glob("*.svs")} <= set(by_name)
    assert result.exit_code == (6 if failed else 0)
    if failed:
        assert {missing.name for missing in read_manifest(out / "missing.tsv")} == failed


def test_slides_arrive_with_a_cohort_and_a_manifest(server: Server, tmp_path: Path) -> None:
    server.add(*(made_file(number) for number in range(6)))
    next(iter(server.files.values())).measures = {"percent_tumor_cells": 62.5, "percent_necrosis": 5.0}
    result = fetch(server, tmp_path)
    assert_nothing_wrong(server, tmp_path, result)
    assert (result.slides, result.cases, result.labels) == (6, 3, {"tumor": 3, "normal": 3})
    slides = Cohort.read(tmp_path / "cohort.csv").slides
    assert {slide.slide for slide in slides} == {name.removesuffix(".svs") for name in _names(server)}
    assert all(slide.path.exists() and slide.site == "Breast" and slide.split for slide in slides)
    assert Counter(slide.label for slide in slides) == {0: 3, 1: 3}
    measured = [slide.extra for slide in slides if slide.extra["percent_tumor_cells"]]
    assert [(one["percent_tumor_cells"], one["section_location"]) for one in measured] == [("62.5", "TOP")]
    assert {one.name for one in read_manifest(tmp_path / "manifest.tsv")} == _names(server)
    assert not (tmp_path / "missing.tsv").exists()


@pytest.mark.parametrize(
    ("number", "own", "other", "expected"),
    [
        (0, 62.5, None, (None, 62.5, None)),
        (0, 60.0, 70.0, (None, 60.0, None)),
        (0, 60.0, 85.0, (60.0, 60.0, 85.0)),
        (0, 60.0, 0.5, (0.0, 60.0, 60.0)),
        (0, 0.0, 40.0, (None, None, None)),
        (0, None, 40.0, (None, None, None)),
        (0, 130.0, 40.0, (None, None, None)),
        (1, 5.0, None, (None, None, None)),
    ],
)
def test_what_pathologists_noted_becomes_percentages_to_learn_from(
    server: Server,
    tmp_path: Path,
    number: int,
    own: float | None,
    other: float | None,
    expected: tuple[float | None, ...],
) -> None:
    other_section = {
        "submitter_id": "TCGA-BH-0000-01A-01-BS1",
        "section_location": "BOTTOM",
        "percent_tumor_cells": other,
    }
    measures = {} if own is None else {"percent_tumor_cells": own, "percent_necrosis": 3.0}
    server.add(made_file(number, 10, measures=measures, other_sections=[other_section]))
    fetch(server, tmp_path)
    (slide,) = Cohort.read(tmp_path / "cohort.csv").slides
    assert (slide.tumor_min, slide.tumor_percent, slide.tumor_max) == expected
    assert slide.label == 1 - number % 2
    assert slide.extra.get("percent_tumor_cells") == (None if own is None else f"{own:g}")


def _names(server: Server) -> set[str]:
    return {stored.name for stored in server.files.values()}


def test_running_again_fetches_only_what_is_missing(server: Server, tmp_path: Path) -> None:
    files = [made_file(number) for number in range(4)]
    server.add(*files)
    fetch(server, tmp_path)
    (tmp_path / files[0].name).unlink()
    (tmp_path / files[1].name).write_bytes(b"cut short")
    server.requests.clear()
    result = fetch(server, tmp_path)
    assert (result.fetched, result.up_to_date) == (2, 2)
    assert {path for path in server.requests if path != "/files"} == {f"/data/{stored.id}" for stored in files[:2]}
    assert_nothing_wrong(server, tmp_path, result)


def test_verify_finds_a_file_that_was_changed_in_place(server: Server, tmp_path: Path) -> None:
    stored = made_file(0)
    server.add(stored)
    fetch(server, tmp_path)
    (tmp_path / stored.name).write_bytes(stored.content[::-1])
    assert fetch(server, tmp_path).fetched == 0
    assert fetch(server, tmp_path, verify=True).fetched == 1
    assert (tmp_path / stored.name).read_bytes() == stored.content


def test_a_cohort_grows_and_keeps_its_splits_and_corrections(server: Server, tmp_path: Path) -> None:
    server.add(*(made_file(number, 100) for number in range(40)))
    fetch(server, tmp_path, limit=10)
    before = {slide.case: slide.split for slide in Cohort.read(tmp_path / "cohort.csv").slides}
    rows = (tmp_path / "cohort.csv").read_text().splitlines()
    at = rows[0].split(",").index("mpp")
    cells = rows[1].split(",")
    cells[at] = "0.25"
    (tmp_path / "cohort.csv").write_text("\n".join([rows[0], ",".join(cells), *rows[2:]]) + "\n")
    fetch(server, tmp_path)
    slides = Cohort.read(tmp_path / "cohort.csv").slides
    assert len(slides) == 40
    assert before.items() <= {slide.case: slide.split for slide in slides}.items()
    assert [slide.mpp for slide in slides if slide.mpp] == [0.25]


def test_a_limit_is_balanced_and_a_larger_one_contains_it(server: Server, tmp_path: Path) -> None:
    server.add(*(made_file(number, 10, site=("Breast", "Kidney")[number % 5 == 0]) for number in range(60)))
    few, more = fetch(server, tmp_path / "a", limit=8), fetch(server, tmp_path / "b", limit=12)
    assert {site: (n["tumor"], n["normal"]) for site, n in few.sites.items()} == {"Breast": (2, 2), "Kidney": (2, 2)}
    assert more.labels == {"tumor": 6, "normal": 6}
    assert {path.name for path in (tmp_path / "a").glob("*.svs")} < {
        path.name for path in (tmp_path / "b").glob("*.svs")
    }


def test_sites_projects_and_barcodes_choose(server: Server, tmp_path: Path) -> None:
    kidney = {"site": "Kidney", "project": "TCGA-KIRC"}
    server.add(*(made_file(number, 10, **(kidney if number > 5 else {})) for number in range(10)))

    def names(**settings: Any) -> int:
        return fetch(server, tmp_path, dry_run=True, **settings).slides

    assert names(site=("kidney",)) == 4
    assert names(project=("TCGA-BRCA",)) == 6
    assert names(barcode=("TCGA-BH-0001",)) == 2
    assert names(barcode=("tcga-bh-0001-11", "TCGA-BH-0004")) == 3
    with pytest.raises(UsageError, match="no slides fit"):
        names(site=("Moon",))


def test_labels_come_from_the_barcode_and_contradictions_are_listed(server: Server, tmp_path: Path) -> None:
    server.add(made_file(0, 10, tissue_type="Normal"), made_file(1, 10, tissue_type="Not Reported"))
    control = made_file(2, 10)
    control.name = control.name.replace("-01A-", "-20A-")
    server.add(control)
    result = fetch(server, tmp_path)
    assert result.labels == {"tumor": 1, "normal": 1}
    assert [text.partition(":")[2] for text in result.disagreements] == [
        " tumour by its barcode, 'Normal' by the GDC; the barcode counts",
    ]
    assert ["sample type 20" in text for text in result.left_out] == [True]
    assert not (tmp_path / control.name).exists()


def test_a_manifest_is_resolved_by_name_and_confirmed_by_md5(server: Server, tmp_path: Path) -> None:
    same, moved, replaced, lost = (made_file(number, 5000) for number in range(4))
    old = [entry(same), entry(moved), entry(replaced), entry(lost)]
    write_manifest(tmp_path / "old.txt", old)
    moved.id = "11111111-2222-3333-4444-555555555555"
    replaced.content = b"new content"
    server.add(same, moved, replaced)
    result = fetch(server, tmp_path / "out", manifest=tmp_path / "old.txt")
    assert {problem["file"]: problem["hint"] for problem in result.failed} == {
        replaced.name: "to take that, give the name to --barcode and leave --manifest out",
        lost.name: "it may have been moved or withdrawn",
    }
    assert (tmp_path / "out" / moved.name).read_bytes() == moved.content
    assert read_manifest(tmp_path / "out" / "manifest.tsv")[1].id == moved.id
    assert fetch(server, tmp_path / "out", barcode=(replaced.name,)).fetched == 1
    assert (tmp_path / "out" / replaced.name).read_bytes() == b"new content"


@pytest.mark.parametrize(("source", "expected"), [("gdc", False), ("s3", True), ("auto", True)])
def test_the_copy_at_amazon_stands_in_for_the_gdc(
    server: Server,
    tmp_path: Path,
    source: str,
    expected: bool,  # noqa: FBT001  a column of the table
) -> None:
    stored = made_file(0)
    server.add(stored)
    server.fault = lambda path, _: "500" if path.startswith("/data/") else "ok"
    result = fetch(server, tmp_path, source=source)
    assert (tmp_path / stored.name).exists() == expected == (not result.failed)
    assert bool(server.requests[f"/data/{stored.id}"]) == (source != "s3")


def test_an_unreachable_api_stops_a_manifest_only_where_there_is_no_copy(server: Server, tmp_path: Path) -> None:
    stored = made_file(0)
    server.add(stored)
    server.list_fault = lambda _: "500"
    write_manifest(tmp_path / "m.txt", [entry(stored)])
    with pytest.raises(DownloadError, match="500"):
        fetch(server, tmp_path / "out", manifest=tmp_path / "m.txt")
    assert fetch(server, tmp_path / "out", manifest=tmp_path / "m.txt", source="s3").fetched == 1


def test_a_dead_server_ends_a_long_list_early(server: Server, tmp_path: Path) -> None:
    server.add(*(made_file(number, 10) for number in range(200)))
    server.fault = lambda _path, _number: "500"
    result = fetch(server, tmp_path)
    assert len(result.failed) == 200
    assert sum("not tried any more" in problem["message"] for problem in result.failed) > 150
    assert len(read_manifest(tmp_path / "missing.tsv")) == 200


def test_a_list_whose_pages_overlap_is_read_again(server: Server, tmp_path: Path) -> None:
    server.add(*(made_file(number, 1) for number in range(1500)))
    server.list_fault = lambda number: "unsorted" if number <= 2 else "ok"
    assert fetch(server, tmp_path, dry_run=True).slides == 1500


def test_a_list_that_never_is_whole_is_refused(server: Server, tmp_path: Path) -> None:
    server.add(*(made_file(number, 1) for number in range(1500)))
    server.list_fault = lambda _: "unsorted"
    with pytest.raises(DownloadError, match="lists 1500 files but gives"):
        fetch(server, tmp_path, dry_run=True)


@pytest.mark.parametrize("fault", ["html", "garbage"])
def test_a_login_page_in_place_of_a_list_is_refused(server: Server, tmp_path: Path, fault: str) -> None:
    server.add(made_file(0))
    server.list_fault = lambda _: fault
    with pytest.raises(DownloadError, match="not JSON"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.svs",
        "/etc/evil.svs",
        "C:\\evil.svs",
        "CON.svs",
        "a" * 300 + ".svs",
        "\U0001f600.svs",
        "..",
        "a\n.svs",
    ],
)
def test_names_that_could_leave_the_folder_are_refused(server: Server, tmp_path: Path, name: str) -> None:
    good, evil = made_file(0), made_file(1)
    server.add(good)
    server.extra_hits = [{**evil.hit(), "file_name": name}]
    out = tmp_path / "deep" / "out"
    result = fetch(server, out)
    assert result.exit_code == 6
    assert "refused" in result.failed[0]["message"]
    assert len(result.failed[0]["message"]) < 250
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {good.name, "cohort.csv", "manifest.tsv"}


@pytest.mark.parametrize("name", ["../../evil.svs", "/etc/evil.svs", "aux.svs", "a" * 300 + ".svs", "\U0001f600.svs"])
def test_names_in_a_manifest_are_refused_too(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.txt").write_text(f"id\tfilename\tmd5\tsize\tstate\n{made_file(0).id}\t{name}\t{'0' * 32}\t1\tx\n")
    with pytest.raises(UsageError, match=r"line 2: the file name .* is refused"):
        read_manifest(tmp_path / "m.txt")


@pytest.mark.parametrize("hit", [{}, {"file_name": 5}, {"file_id": "../x"}, {"file_size": -1}, {"cases": "none"}])
def test_rows_of_another_shape_are_refused(server: Server, tmp_path: Path, hit: dict[str, Any]) -> None:
    server.add(made_file(0))
    server.extra_hits = [{**made_file(1).hit(), **hit} if hit else {"file_id": "x"}]
    result = fetch(server, tmp_path)
    assert (len(result.failed), result.fetched) == (1, 1)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://127.0.0.1:9/x", "ftp://127.0.0.1/x", "http://[::1"])
def test_redirects_to_elsewhere_are_refused(server: Server, tmp_path: Path, target: str) -> None:
    stored = made_file(0)
    server.add(stored)
    server.pages[f"/data/{stored.id}"] = lambda handler: handler.answer(302, b"", {"Location": target})
    result = fetch(server, tmp_path)
    assert re.search("redirects to|Invalid URL in location header", result.failed[0]["message"])
    assert not (tmp_path / stored.name).exists()


def test_redirects_on_the_same_host_are_followed_but_not_forever(server: Server, tmp_path: Path) -> None:
    one, two = made_file(0), made_file(1)
    server.add(one, two)
    place = f"/{one.id}/{one.name}"
    server.pages[f"/data/{one.id}"] = lambda handler: handler.answer(302, b"", {"Location": place})
    server.pages[f"/data/{two.id}"] = lambda handler: handler.answer(302, b"", {"Location": f"/data/{two.id}"})
    result = fetch(server, tmp_path)
    assert (tmp_path / one.name).read_bytes() == one.content
    assert [problem["message"].rpartition(": ")[2] for problem in result.failed] == ["redirects without end"]


def test_a_full_disk_is_told_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    stored = made_file(0)
    server.add(stored)
    write_manifest(tmp_path / "m.txt", [Entry(stored.id, made_file(2).name, stored.md5, 10**18)])
    server.extra_hits = [{**made_file(2).hit(), "file_size": 10**18, "md5sum": stored.md5}]
    with pytest.raises(OutputError, match=r"1000000000\.0 GB are needed and .* are free"):
        fetch(server, tmp_path / "out", manifest=tmp_path / "m.txt")
    assert not any(path.startswith("/data") for path in server.requests)


def test_a_dry_run_fetches_and_writes_nothing(server: Server, tmp_path: Path) -> None:
    server.add(*(made_file(number, 200_000) for number in range(4)))
    result = fetch(server, tmp_path / "out", dry_run=True)
    assert result.bytes == result.bytes_to_fetch == 800_000
    assert set(server.requests) == {"/files"}
    assert not (tmp_path / "out").exists()


def test_the_manifest_of_the_paper_gives_the_cohort_of_the_paper(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    manifest = data / "gdc" / "paper_manifest.tsv"
    began = time.process_time()
    result = fetch_tcga(FetchTcgaConfig(out=tmp_path, manifest=manifest, paper=True, dry_run=True))
    assert time.process_time() - began < 5
    assert (result.slides, result.cases, result.labels) == (6481, 3020, {"tumor": 4775, "normal": 1706})
    assert result.sample_types == {"01": 4762, "02": 4, "05": 2, "06": 7, "11": 1706}
    assert {site: counts["slides"] for site, counts in result.sites.items()} == {
        "Breast": 1979,
        "Bronchus and lung": 2168,
        "Kidney": 2334,
    }
    assert {split: counts["cases"] for split, counts in result.splits.items()} == {
        "train": 1963,
        "val": 453,
        "test": 604,
    }


def test_the_paper_is_fetched_from_its_own_manifest(server: Server, data: Path, tmp_path: Path) -> None:
    text = (data / "gdc" / "paper_manifest.tsv").read_bytes()
    path = "/b294c53c7d951314a65e25f911200813e314ecdb/data/manifest_tcga_frozen_slides_breast_kidney_lung.txt"
    server.pages[path] = lambda handler: handler.answer(200, text, {"Content-Type": "text/plain"})
    result = fetch(server, tmp_path, paper=True, paper_mirror=server.url, site=("Kidney",), dry_run=True)
    assert (result.slides, result.cases) == (2334, 916)


def test_offline_the_advice_is_to_give_the_papers_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    with pytest.raises(DownloadError, match="the paper's manifest: not fetched") as caught:
        fetch_tcga(FetchTcgaConfig(out=tmp_path, paper=True))
    assert caught.value.hint == "give a copy of it with --manifest"


def test_sites_that_the_gdc_does_not_know_are_empty(server: Server, tmp_path: Path) -> None:
    server.add(*(made_file(number, 10, site=site) for number, site in enumerate(["Not Reported", "Unknown", "Breast"])))
    assert set(fetch(server, tmp_path, dry_run=True).sites) == {"unknown", "Breast"}
    fetch(server, tmp_path)
    assert [slide.site for slide in Cohort.read(tmp_path / "cohort.csv").slides] == ["", "", "Breast"]


@pytest.mark.parametrize(
    "name",
    [
        "gdc_manifest_20181003_data_release_13.0_cnv_slides.txt",
        "gdc_open_MAFs_manifest.txt",
        "gdc_manifest_CPTAC-3_7CasesRNASeq.txt",
        "gdc_release_manifest_14col_TARGET-RT.tsv",
    ],
)
def test_manifests_of_other_things_are_refused(data: Path, name: str) -> None:
    with pytest.raises(UsageError, match="give a manifest of slides"):
        read_manifest(data / "gdc" / name)


SCHEDULES = st.lists(st.lists(st.sampled_from(FAULTS), max_size=5), min_size=1, max_size=5)
LISTS = st.lists(st.sampled_from(["ok", "unsorted", "500", "429", "reset"]), max_size=3)


def check_schedules(server: Server, out: Path, schedules: list[list[str]], lists: list[str], kept: int) -> None:
    """Fetch from a server that follows a plan for every file and for its list; what is left of a part is `kept`."""
    server.reset()
    files = [made_file(number, 40_000) for number in range(len(schedules))]
    server.add(*files)
    (out / f"{files[0].name}.part").write_bytes(files[0].content[:kept])
    plans = {f"/data/{stored.id}": plan for stored, plan in zip(files, schedules, strict=True)}
    server.fault = lambda path, number: plans[path][number - 1] if number <= len(plans[path]) else "ok"
    server.list_fault = lambda number: lists[number - 1] if number <= len(lists) else "ok"
    began = time.monotonic()
    result = fetch(server, out, HASTY)
    assert time.monotonic() - began < 60
    assert_nothing_wrong(server, out, result)
    assert max(server.requests.values()) <= 2 * QUICK.tries + 8
    for stored, plan in zip(files, schedules, strict=True):
        if len(plan) < QUICK.tries and "html" not in plan:
            assert (out / stored.name).exists()
    assert fetch(server, out, HASTY).failed == () or any(
        len(plan) >= QUICK.tries or "html" in plan for plan in schedules
    )


@settings(max_examples=20)
@given(schedules=SCHEDULES, lists=LISTS, kept=st.integers(0, 40_000))
def test_whatever_a_server_does_nothing_wrong_gets_a_final_name(
    server: Server,
    tmp_path_factory: pytest.TempPathFactory,
    schedules: list[list[str]],
    lists: list[str],
    kept: int,
) -> None:
    check_schedules(server, tmp_path_factory.mktemp("out"), schedules, lists, kept)


@pytest.mark.slow
@settings(max_examples=200)
@given(schedules=SCHEDULES, lists=LISTS, kept=st.integers(0, 40_000))
def test_the_same_for_two_hundred_schedules(
    server: Server,
    tmp_path_factory: pytest.TempPathFactory,
    schedules: list[list[str]],
    lists: list[str],
    kept: int,
) -> None:
    check_schedules(server, tmp_path_factory.mktemp("out"), schedules, lists, kept)


@pytest.mark.slow
def test_three_thousand_files_arrive_from_a_bad_server(server: Server, tmp_path: Path) -> None:
    server.add(*(made_file(number, random.Random(number).randrange(1000, 60_000)) for number in range(3000)))
    chance = random.Random(0)
    usual = [fault for fault in FAULTS if fault != "stall"]
    server.fault = lambda _path, number: chance.choice(usual) if number < 3 and chance.random() < 0.3 else "ok"
    server.list_fault = lambda number: ["500", "unsorted", "429", "reset"][number] if number < 4 else "ok"
    result = fetch(server, tmp_path, jobs=8)
    assert_nothing_wrong(server, tmp_path, result)
    reasons = {problem["message"].rpartition(": ")[2] for problem in result.failed}
    assert reasons == {"a web page came in place of the file"}
    server.fault = lambda _path, _number: "ok"
    again = fetch(server, tmp_path, jobs=8)
    assert (again.fetched, again.exit_code) == (len(result.failed), 0)
    assert_nothing_wrong(server, tmp_path, again)


@pytest.mark.slow
def test_after_a_kill_each_file_goes_on_where_it_ends(server: Server, tmp_path: Path) -> None:
    files = [made_file(number, 2_000_000) for number in range(50)]
    server.add(*files)
    server.pause_s = 0.003
    chance = random.Random(1)
    command = [sys.executable, "-m", "wsiseg", "fetch", "tcga", "--out", str(tmp_path / "out"), "--quiet"]
    environment = {**os.environ, "WSISEG_MIRROR_GDC": server.url}
    killed, kept = 0, dict[str, int]()

    def assert_nothing_came_twice() -> None:
        began = {name: begins[0] for name, begins in list(server.begins.items())}
        assert began == {name: kept.get(name, 0) for name in began}

    for _ in range(10):
        server.begins.clear()
        process = subprocess.Popen(command, env=environment)
        arrived = sum(server.sent.values())
        while sum(server.sent.values()) == arrived and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.02, 0.3))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert_nothing_came_twice()
        kept = {path.name.removesuffix(".part"): path.stat().st_size for path in (tmp_path / "out").glob("*.svs*")}
    assert killed > 5
    server.begins.clear()
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert_nothing_came_twice()
    for stored in files:
        assert (tmp_path / "out" / stored.name).read_bytes() == stored.content


def test_mirrors_of_settings_without_an_option_come_from_the_environment(server: Server, tmp_path: Path) -> None:
    stored = made_file(0)
    server.add(stored)
    server.fault = lambda path, _: "500" if path.startswith("/data/") else "ok"
    command = [sys.executable, "-m", "wsiseg", "fetch", "tcga", "--source", "s3", "--out", str(tmp_path), "--quiet"]
    mirrors = {"WSISEG_MIRROR_GDC": server.url, "WSISEG_MIRROR_S3": server.url}
    assert subprocess.run(command, env={**os.environ, **mirrors}, check=False).returncode == 0
    assert (tmp_path / stored.name).read_bytes() == stored.content
    assert server.requests[f"/{stored.id}/{stored.name}"] == 1


def test_the_command_line_names_what_failed_and_goes_on(server: Server, tmp_path: Path) -> None:
    good, bad = made_file(0), made_file(1)
    server.add(good, bad)
    server.fault = lambda path, _: "html" if bad.id in path else "ok"
    command = [sys.executable, "-m", "wsiseg", "fetch", "tcga", "--out", str(tmp_path), "--json"]
    mirrored = {**os.environ, "WSISEG_MIRROR_GDC": server.url}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=mirrored)
    assert done.returncode == 6
    answer = json.loads(done.stdout)
    assert [problem["file"] for problem in answer["failed"]] == [bad.name]
    assert f"failed: {bad.name}: a web page came in place of the file" in done.stderr
    assert "Traceback" not in done.stderr
    with (tmp_path / "cohort.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [good.name]
    server.fault = lambda _path, _number: "ok"
    assert subprocess.run(command, capture_output=True, check=False, env=mirrored).returncode == 0


def test_an_interrupted_run_leaves_a_cohort_of_what_is_there(server: Server, tmp_path: Path) -> None:
    first, second = made_file(0, 1000), made_file(1, 3_000_000)
    server.add(first, second)
    server.fault = lambda path, _number: "hold" if second.id in path else "ok"
    command = [sys.executable, "-m", "wsiseg", "fetch", "tcga", "--out", str(tmp_path)]
    mirrored = {**os.environ, "WSISEG_MIRROR_GDC": server.url}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=mirrored)
    wait_until(lambda: server.sent[second.name] and (tmp_path / first.name).exists(), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LONGEST_S)
    assert process.returncode == 130
    assert [slide.path.name for slide in Cohort.read(tmp_path / "cohort.csv").slides] == [first.name]
