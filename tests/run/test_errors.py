import re
from pathlib import Path

import wsiseg
from wsiseg.run import errors
from wsiseg.run.record import SlideRecord


def test_an_error_is_a_sentence_and_what_to_do() -> None:
    error = errors.SlideError("a.svs: is broken", "get it again")
    assert (error.message, error.hint, str(error)) == (
        "a.svs: is broken",
        "get it again",
        "a.svs: is broken; get it again",
    )
    assert str(errors.SlideError("a.svs: is broken")) == "a.svs: is broken"
    assert str(errors.SlideError()) == "SlideError"


def test_a_little_is_not_none_and_nearly_all_is_not_all() -> None:
    shares = (0, 1, 0.0001, 0.00051, 0.002, 0.0064, 0.017, 0.344, 0.992, 0.996, 0.99996)
    said = ["0%", "100%", "<0.1%", "0.1%", "0.2%", "1%", "2%", "34%", "99%", "99.6%", ">99.9%"]
    assert [errors.percent(share) for share in shares] == said


def test_one_thing_is_not_spoken_of_as_many() -> None:
    found = [errors.counted(count, what) for count, what in ((0, "slide"), (1, "slide"), (1200, "patch"))]
    assert found == ["0 slides", "1 slide", "1,200 patches"]


def drawn() -> dict[str, tuple[str, int]]:
    """Read the drawing: the parent and the exit code of every class; a code that is not drawn is the parent's."""
    found: dict[str, tuple[str, int]] = {}
    above: list[str] = []
    for line in str(errors.__doc__).splitlines():
        match = re.match(r"([│├└─ ]*)(\w+Error) +(?:exit code )?(\d?)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        parent = above[depth - 1] if depth else "Exception"
        found[match[2]] = parent, int(match[3] or found[parent][1])
        above[depth:] = [match[2]]
    return found


def written() -> dict[str, tuple[str, int]]:
    """Read the classes of the whole package from its source, as importing all of it would load torch."""
    sources = [path.read_text(encoding="utf-8") for path in Path(str(wsiseg.__file__)).parent.rglob("*.py")]
    classes = re.compile(r"^class (\w+)\((\w+)\):(?:\n(?:    .*)?)*?(?=\n\n\n|\Z)", re.MULTILINE)
    parents = {match[1]: (match[2], match[0]) for source in sources for match in classes.finditer(source)}
    found = {"WsisegError": ("Exception", 1)}
    while more := {name for name, (parent, _) in parents.items() if parent in found} - set(found):
        for name in more:
            parent, body = parents[name]
            code = re.search(r"exit_code = (\d)", body)
            found[name] = parent, int(code[1]) if code else found[parent][1]
    return found


def test_the_drawing_shows_every_error_with_its_parent_and_exit_code() -> None:
    assert drawn() == written()
    assert len(drawn()) > 10


def test_the_exit_codes_are_those_of_the_contract() -> None:
    codes = {name: code for name, (_, code) in drawn().items() if code != 1}
    assert codes == {
        "UsageError": 2,
        "GateError": 3,
        "DeviceError": 4,
        "ModelFileError": 5,
        "DownloadError": 6,
        "GoneError": 6,
    }
    for name in codes.keys() - {"GoneError"}:
        assert getattr(errors, name).exit_code == codes[name]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_what_says_that_memory_is_wanting_is_what_is_told() -> None:
    lacking = caused(RuntimeError("DefaultCPUAllocator: can't allocate memory"), KeyError("unrelated"))
    assert errors.no_memory(caused(errors.UsageError("no feature map"), lacking)).startswith(
        "out of memory (DefaultCPUAllocator: "
    )
    assert errors.no_memory(MemoryError()).startswith("out of memory; ")
    assert not errors.is_out_of_memory(caused(errors.UsageError("no feature map"), KeyError("unrelated")))


def test_a_slide_that_lacked_memory_is_not_called_broken_or_no_slide() -> None:
    error = errors.NotASlideError("a.svs: cannot be decoded")
    error.__cause__ = RuntimeError("std::bad_alloc")
    record = SlideRecord.of_error("a", Path("a.svs"), error, must_be_slide=False)
    assert record.error is not None
    assert (record.status, record.error.message) == ("failed", "a.svs: out of memory")
