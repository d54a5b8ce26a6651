"""Nothing talks to anybody whom the user did not name: no socket is opened, and nothing is left in the home folder."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from making.cohorts import write_cohort
from making.models import write_color_filter_model
from making.predictions import command, write_slides
from making.servers import serving

SOURCES = Path(__file__).resolve().parents[1] / "src" / "wsiseg"
LINGER_S = 14
"""ONNX Runtime's telemetry looks its host up ten seconds after the import."""
_CALLS = "trace=socket,connect,bind,sendto,sendmsg,sendmmsg"
_IN_NAMESPACE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
_LOOKED_AT = """
import signal, subprocess, sys, urllib.request
viewer = subprocess.Popen([sys.executable, "-m", "wsiseg", "view", sys.argv[1]], stdout=subprocess.PIPE, text=True)
address = viewer.stdout.readline().strip()
page = urllib.request.urlopen(address).read().decode()
assert "<html" in page
viewer.send_signal(signal.SIGINT)
assert viewer.wait() == 130
"""
"""A program that starts `wsiseg view`, asks for its page and ends it as Ctrl-C does."""
_TELLTALE = """
import socket, threading
CALLS = {
    "connects": "socket.create_connection(('192.0.2.1', 443), 1)",
    "looks up a name": "socket.getaddrinfo('telemetry.example', 443)",
    "sends": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'me', ('198.51.100.7', 53))",
}
def tell(program):
    try:
        exec(program)
    except OSError:
        pass
threading.Timer(1, tell, [CALLS["HOW"]]).start()
"""
"""A dependency that tells somebody that it is used, a second after it was imported."""
_LOCAL = re.compile(r'inet_addr\("127\.[\d.]+"\)|inet_pton\(AF_INET6, "::1"')


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return what a user's shell has; a variable CI, for one, would silence what is looked for here."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    home.mkdir(exist_ok=True)
    return {**kept, "HOME": str(home), **more}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import sys; from wsiseg import ModelFile; ModelFile.open(sys.argv[1]).close()", "MODEL"),
        ("-m", "wsiseg", "predict", "SLIDES", "--model", "MODEL", "--tissue", "none", "--out", "OUT"),
        ("-m", "wsiseg", "doctor"),
    ],
)
def test_nothing_is_left_in_the_home_folder(
    arguments: tuple[str, ...], model: Path, slides: Path, tmp_path: Path
) -> None:
    places = {"MODEL": model, "SLIDES": slides, "OUT": tmp_path / "out"}
    command = [sys.executable, *(str(places.get(part, part)) for part in arguments)]
    home = tmp_path / "home"
    subprocess.run(command, env=environment(home), check=True, capture_output=True)
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_one_place_imports_onnx_runtime() -> None:
    places = {path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.py") if "onnxruntime" in imported(path)}
    assert places == set()
    found = [path.name for path in SOURCES.rglob("*.py") if 'import_module("onnxruntime' in path.read_text("utf-8")]
    assert found == ["onnx_session.py"]


def imported(path: Path) -> set[str]:
    """Name the packages that a module imports, but for those that only its types need."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unused = {id(inner) for node in typing for inner in ast.walk(node)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) not in unused and isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif id(node) not in unused and isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.fixture(scope="module")
def traced_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty home folder for programs that linger before they end, long enough to be heard of."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*_IN_NAMESPACE, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to make a network namespace")
    home = tmp_path_factory.mktemp("home")
    (home / "sitecustomize.py").write_text(f"import atexit, time\natexit.register(time.sleep, {LINGER_S})\n")
    return home


def sockets(home: Path, *arguments: object, outside: bool = False, **settings: str) -> list[str]:
    """Run Python without a network; return the calls that would have reached anything but this process's children."""
    log = home.parent / f"{home.name}-trace"
    strace = ["strace", "-f", "-qq", "-s", "200", "-e", _CALLS, "-o", str(log)]
    command = [*(() if outside else _IN_NAMESPACE), *strace, sys.executable, *map(str, arguments)]
    paths = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
    env = environment(home, **{"PYTHONPATH": paths, **settings})
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return [line for line in log.read_text().splitlines() if "AF_INET" in line]


def strangers(calls: list[str]) -> list[str]:
    """Return the calls that name an address of another machine than this one."""
    return [call for call in calls if re.search(r"sin6?_(port|addr)|inet_", call) and not _LOCAL.search(call)]


@pytest.mark.slow
def test_no_command_opens_a_socket(traced_home: Path, model: Path, tmp_path: Path) -> None:
    def quiet(*arguments: object) -> None:
        assert sockets(traced_home, "-m", "wsiseg", *arguments) == []

    write_cohort(tmp_path)
    table, run, exported = tmp_path / "tiles" / "cohort.csv", tmp_path / "run", tmp_path / "model.onnx"
    slides, truth, out = tmp_path / "slides", tmp_path / "truth", tmp_path / "out"
    network = ("--arch", "timm:test_resnet", "--init", "none", "--device", "cpu")
    assert sockets(traced_home, "-c", "import wsiseg; wsiseg.ModelFile, wsiseg.predict") == []
    quiet("fetch", "example", "--out", tmp_path / "example")
    quiet("init", tmp_path / "example")
    quiet("tile", tmp_path / "cohort.csv", "--out", table.parent, "--tile", 64, "--pixels")
    quiet("train", table, "--out", run, *network, "--epochs", 1, "--bag", 8)
    quiet("train", table, "--out", tmp_path / "grid", *network, "--epochs", 1, "--bag", 4, "--grid", "--freeze")
    quiet("export", run, "--out", exported, "--precision", "int8", "--allow-loss")
    quiet("predict", slides, "--model", exported, "--out", out)
    quiet("convert", out, "--to", "csv", "--to", "ome-tiff", "--to", "ngff-0.5")
    quiet("evaluate", out, "--truth", truth, "--cohort", tmp_path / "cohort.csv", "--out", tmp_path / "found")
    quiet("doctor")
    quiet("doctor", "--model", model)
    quiet("doctor", slides / "slide-0.tiff", "--deep")
    quiet("doctor", out, "--sample", 4)
    assert left_behind(traced_home) == []


@pytest.mark.slow
def test_view_talks_to_its_browser_alone(traced_home: Path, slides: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    subprocess.run(command(slides, model, out), check=True, capture_output=True)
    calls = sockets(traced_home, "-c", _LOOKED_AT, out)
    assert any("bind(" in call for call in calls)
    assert strangers(calls) == []


@pytest.mark.slow
@pytest.mark.usefixtures("traced_home")
@pytest.mark.parametrize("how", ["connects", "looks up a name", "sends"])
def test_a_dependency_that_talks_is_found(how: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "telltale.py").write_text(_TELLTALE.replace("HOW", how))
    (home / "sitecustomize.py").write_text("import telltale\n")
    calls = sockets(home, "-m", "wsiseg", "doctor")
    assert strangers(calls), calls


@pytest.mark.slow
def test_dask_workers_talk_among_themselves_alone(traced_home: Path, slides: Path, model: Path, tmp_path: Path) -> None:
    arguments = ("-m", "wsiseg", "predict", slides, "--model", model, "--tissue", "none", "--out", tmp_path / "out")
    calls = sockets(traced_home, *arguments, "--dask", "local:2")
    assert calls
    assert strangers(calls) == []
    assert left_behind(traced_home) == []


@pytest.mark.slow
def test_fetch_talks_to_the_named_host_alone(traced_home: Path, data: Path, tmp_path: Path) -> None:
    name = "CMU-1-Small-Region.svs"
    content = (data / "slides" / name).read_bytes()
    with serving() as server:
        server.pages[f"/{name}"] = lambda handler: handler.answer(200, content)
        arguments = ("-m", "wsiseg", "fetch", "demo", "--out", tmp_path)
        calls = sockets(traced_home, *arguments, outside=True, WSISEG_MIRROR_DEMO=server.url)
    assert (tmp_path / name).read_bytes() == content
    connections = [call for call in calls if "connect(" in call]
    assert connections
    port = server.url.rpartition(":")[2]
    assert [call for call in connections if f"htons({port})" not in call or not _LOCAL.search(call)] == []


def left_behind(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and "sitecustomize" not in path.name]
