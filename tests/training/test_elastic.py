"""torchrun starts all processes again where one is lost, and training goes on from what was saved."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from making.tiled import SMALL
from wsiseg.network.weights import read_torch

LONGEST_S = 300
EPOCHS = 60  # enough to lose a process on the way, however late that comes


def command(cohort: Path, out: Path) -> list[str]:
    """Return what trains in two processes that find each other on this machine, and may be started again."""
    place = ["--nnodes", "1", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *place, "--max-restarts", "3", "-m", "wsiseg"]
    small = [
        "--arch",
        SMALL,
        "--init",
        "none",
        "--bag",
        "12",
        "--epochs",
        str(EPOCHS),
        "--config",
        str(out.parent / "s.toml"),
    ]
    return [*torchrun, "train", str(cohort), "--out", str(out), *small]


def workers(process: int) -> list[int]:
    """Return the processes that a process has started, and that train."""
    found = []
    for child in map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()):
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        found += [child] if b"train" in words else []
    return found


def trained(path: Path) -> dict[str, Any]:
    state = read_torch(path)
    return {"epoch": state["epoch"], "finished": state["finished"], "network": state["network"]}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes under /proc")
def test_a_run_that_loses_a_process_ends_as_one_that_does_not(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("save_minutes = 0.0001\nmax_tiles = 24\n")
    # The store that torchrun shares with its processes keeps the addresses of those that are gone; a new one has none.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    subprocess.run(command(cohort, tmp_path / "whole"), env=environment, check=True, capture_output=True)
    with subprocess.Popen(
        command(cohort, tmp_path / "run"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        began, last = time.monotonic(), tmp_path / "run" / "last.pt"
        while not last.exists() and process.poll() is None and time.monotonic() < began + LONGEST_S:
            time.sleep(0.005)
        os.kill(workers(process.pid)[-1], signal.SIGKILL)
        assert not read_torch(last)["finished"], "a file that is there is whole"
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait() == 0, said
    assert said.count("slides have more than 24 tiles") == 2, "they were started again"
    ours, whole = (trained(tmp_path / name / "last.pt") for name in ("run", "whole"))
    assert (ours["epoch"], ours["finished"]) == (whole["epoch"], whole["finished"]) == (EPOCHS, True)
    for name, tensor in whole["network"].items():
        assert torch.equal(ours["network"][name], tensor), name
