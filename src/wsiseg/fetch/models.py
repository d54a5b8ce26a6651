"""Published tile classifiers of the WSInfer model zoo, from Hugging Face at pinned revisions.

Source of the format: `config.json` with classes, tile size and um/px beside a TorchScript model
(https://wsinfer.readthedocs.io). `wsiseg export --from-wsinfer` makes a model file of such a folder.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import httpx
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wsiseg.config.fetch import FetchModelConfig
from wsiseg.fetch.batch import Batch, Wanted, Watcher
from wsiseg.fetch.connection import open_client, read_json, shown_url
from wsiseg.fetch.http import Checksum, Remote
from wsiseg.fetch.patience import Patience
from wsiseg.run.errors import DownloadError, UsageError
from wsiseg.run.outputs import write_json

HUB = "https://huggingface.co"
FILES = ("config.json", "torchscript_model.pt", "README.md")
_ORIGIN = "origin.json"
_SMALL_BYTES = 1 << 20
_OWNER = "kaczmarj"
_CC_BY = "CC-BY-4.0"


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo.

    Attributes:
        name: What it is called there.
        tissue: What it was trained on.
        finds: What it tells apart.
        license: Of its weights.
        revision: The commit that is fetched.
    """

    name: str
    tissue: str
    finds: str
    license: str
    revision: str

    @property
    def repository(self) -> str:
        """Its place at Hugging Face."""
        return f"{_OWNER}/{self.name}"


ZOO = (
    ZooModel(
        "breast-tumor-inception_v4.tcga-brca", "breast", "tumor", _CC_BY, "35d3c46cdc8687154f6ed41350a208171a75a95f",
    ),
    ZooModel(
        "breast-tumor-resnet34.tcga-brca", "breast", "tumor", _CC_BY, "599e008fd9ef7c4ddff790674f16a05680ec3af6",
    ),
    ZooModel(
        "colorectal-tiatoolbox-resnet50.kather100k", "colorectum", "nine tissues, tumor among them", _CC_BY,
        "bc3a0cccf5da89af14d124ffae11d85ce81c85ca",
    ),
    ZooModel(
        "lung-tumor-resnet34.tcga-luad", "lung", "tumor and subtypes", _CC_BY,
        "042155b186e06f487f0834bc3cd0971824dbe681",
    ),
    ZooModel(
        "lymphnodes-tiatoolbox-resnet50.patchcamelyon", "lymph nodes", "metastasis", _CC_BY,
        "74a2314d3c7fe1ed08943a9ae4dc16f58765927a",
    ),
    ZooModel(
        "pancreas-tumor-preactresnet34.tcga-paad", "pancreas", "tumor", _CC_BY,
        "1dba2f997dc7a8e9ca39dd980de6ae3b35d37d58",
    ),
    ZooModel(
        "prostate-tumor-resnet34.tcga-prad", "prostate", "Gleason 3, Gleason 4 or 5, benign", _CC_BY,
        "c4681c340adc0bea311c1abbf18da6fa523a714d",
    ),
)  # fmt: skip
"""Models that are known to fit; lymphocyte models and the like do not find tumour and are left out."""


class _LargeFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size: int = Field(ge=0)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    rfilename: str
    size: int | None = Field(default=None, ge=0)
    lfs: _LargeFile | None = None


class _Repository(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    sha: str
    siblings: tuple[_File, ...]


def zoo_model(name: str) -> ZooModel:
    """Find a model by its name.

    Raises:
        UsageError: There is none of this name.
    """
    known = {model.name: model for model in ZOO}
    if name not in known:
        raise UsageError(f"{name}: no such model", f"see wsiseg fetch model --list; there are {', '.join(known)}")
    return known[name]


def fetch_model(config: FetchModelConfig, watcher: Watcher | None = None, patience: Patience | None = None) -> Path:
    """Fetch a model of the zoo into the cache, unless it is there.

    Args:
        config: The settings.
        watcher: Is told how it goes.
        patience: How often and how long to try.

    Returns:
        The folder with its files, and `origin.json` with name, revision and licence.

    Raises:
        UsageError: There is no such model.
        DownloadError: It cannot be had.
    """
    from platformdirs import user_cache_path  # noqa: PLC0415  only where models are fetched

    model, watcher, patience = zoo_model(config.name or ""), watcher or Watcher(), patience or Patience()
    folder = (config.cache or user_cache_path("wsiseg") / "zoo") / model.name / model.revision
    if (folder / _ORIGIN).exists():
        return folder
    hub = (config.mirror or HUB).rstrip("/")
    with open_client(patience) as client:
        remotes = _remotes(client, hub, model, patience)
        wanted = [Wanted(remote, folder / remote.name) for remote in remotes]
        failed = [one for one in Batch(client, patience, config.jobs, watcher).fetch(wanted) if one.error is not None]
    if failed and failed[0].error is not None:
        raise failed[0].error
    origin = {**asdict(model), "source": f"{HUB}/{model.repository}/tree/{model.revision}"}
    write_json(folder / _ORIGIN, origin)
    return folder


def _remotes(client: httpx.Client, hub: str, model: ZooModel, patience: Patience) -> Sequence[Remote]:
    """Ask for sizes and hashes of a model's files.

    Raises:
        DownloadError: The hub does not answer, or with something else.
    """
    url = f"{hub}/api/models/{model.repository}/revision/{model.revision}?blobs=true"
    try:
        repository = _Repository.model_validate(read_json(client, url, patience))
    except ValidationError as error:
        raise DownloadError(f"{shown_url(url)}: answers with something else than a list of files") from error
    files = {file.rfilename: file for file in repository.siblings}
    missing = [name for name in FILES if name not in files]
    if missing or repository.sha != model.revision:
        raise DownloadError(f"{model.name}: {' and '.join(missing) or 'the pinned revision'} is not there")
    return [_remote(hub, model, files[name]) for name in FILES]


def _remote(hub: str, model: ZooModel, file: _File) -> Remote:
    url = f"{hub}/{model.repository}/resolve/{model.revision}/{file.rfilename}"
    if file.lfs is None:
        return Remote(file.rfilename, (url,), file.size, most=_SMALL_BYTES)
    return Remote(file.rfilename, (url,), file.lfs.size, Checksum("sha256", file.lfs.sha256))
