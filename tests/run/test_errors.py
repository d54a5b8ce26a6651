import pytest

from wsiseg.run import errors


def test_an_error_is_a_sentence_and_what_to_do() -> None:
    error = errors.SlideError("a.svs: is broken", "get it again")
    assert (error.message, error.hint, str(error)) == (
        "a.svs: is broken",
        "get it again",
        "a.svs: is broken; get it again",
    )
    assert str(errors.SlideError("a.svs: is broken")) == "a.svs: is broken"
    assert str(errors.SlideError()) == "SlideError"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("WsisegError", 1),
        ("UsageError", 2),
        ("GateError", 3),
        ("DeviceError", 4),
        ("ModelFileError", 5),
        ("DownloadError", 6),
        ("OutputError", 1),
        ("StalledError", 1),
        ("SlideError", 1),
        ("PixelSizeError", 1),
        ("NotASlideError", 1),
    ],
)
def test_every_kind_has_the_exit_code_of_the_contract(name: str, code: int) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.WsisegError)
    assert kind.exit_code == code
    assert name in str(errors.__doc__)
