"""Published tile classifiers of the WSInfer model zoo, from Hugging Face at pinned revisions.

Source of the format: `config.json` with classes, tile size and um/px beside a TorchScript model
(https://wsinfer.readthedocs.io). `wsiseg export --from-wsinfer` makes a model file of such a folder.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import AliasPath, BaseModel, Field

from wsiseg.config.fetch import FetchModelConfig
from wsiseg.fetch.batch import fetch_all
from wsiseg.run.connection import USUAL, Client, Patience, open_client
from wsiseg.run.download import Checksum, Wanted
from wsiseg.run.errors import DownloadError, UsageError
from wsiseg.run.outputs import write_json
from wsiseg.run.record import Progress

HUB = "https://huggingface.co"
FILES = ("config.json", "torchscript_model.pt", "README.md")
_ORIGIN = "origin.json"
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo."""

    name: str
    tissue: str  # what it was trained on
    finds: str  # what it tells apart
    revision: str  # the commit that is fetched
    license: str = "CC-BY-4.0"  # of its weights

    @property
    def repository(self) -> str:
        """Its place at Hugging Face."""
        return f"kaczmarj/{self.name}"


ZOO = tuple(
    ZooModel(*row)
    for row in (
        ("breast-tumor-inception_v4.tcga-brca", "breast", "tumor", "35d3c46cdc8687154f6ed41350a208171a75a95f"),
        ("breast-tumor-resnet34.tcga-brca", "breast", "tumor", "599e008fd9ef7c4ddff790674f16a05680ec3af6"),
        ("colorectal-tiatoolbox-resnet50.kather100k", "colorectum", "nine tissues, tumor among them",
         "bc3a0cccf5da89af14d124ffae11d85ce81c85ca"),
        ("lung-tumor-resnet34.tcga-luad", "lung", "tumor and subtypes", "042155b186e06f487f0834bc3cd0971824dbe681"),
        ("lymphnodes-tiatoolbox-resnet50.patchcamelyon", "lymph nodes", "metastasis",
         "74a2314d3c7fe1ed08943a9ae4dc16f58765927a"),
        ("pancreas-tumor-preactresnet34.tcga-paad", "pancreas", "tumor", "1dba2f997dc7a8e9ca39dd980de6ae3b35d37d58"),
        ("prostate-tumor-resnet34.tcga-prad", "prostate", "Gleason 3, Gleason 4 or 5, benign",
         "c4681c340adc0bea311c1abbf18da6fa523a714d"),
    )
)  # fmt: skip
"""Models that are known to fit; lymphocyte models and the like do not find tumour and are left out."""


class _File(BaseModel):
    rfilename: str
    size: int | None = Field(None, ge=0)
    sha256: str | None = Field(None, validation_alias=AliasPath("lfs", "sha256"), pattern="^[0-9a-f]{64}$")

    @property
    def checksum(self) -> Checksum | None:
        return Checksum("sha256", self.sha256) if self.sha256 else None


class _Repository(BaseModel):
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


def fetch_model(config: FetchModelConfig, progress: Progress | None = None, patience: Patience = USUAL) -> Path:
    """Fetch a model of the zoo into the cache, unless it is there.

    Returns:
        The folder with its files, and `origin.json` with name, revision and licence.

    Raises:
        UsageError: There is no such model.
        DownloadError: It cannot be had.
    """
    from platformdirs import user_cache_path  # noqa: PLC0415  only where models are fetched

    model = zoo_model(config.name or "")
    folder = (config.cache or user_cache_path("wsiseg") / "zoo") / model.name / model.revision
    if (folder / _ORIGIN).exists():
        return folder
    with open_client(patience) as client:
        wanted = _wanted(client, (config.mirror or HUB).rstrip("/"), model, folder)
        for outcome in fetch_all(client, wanted, config.jobs, progress or Progress()):
            if outcome.error is not None:
                raise outcome.error
    write_json(folder / _ORIGIN, {**asdict(model), "source": f"{HUB}/{model.repository}/tree/{model.revision}"})
    return folder


def _wanted(client: Client, hub: str, model: ZooModel, folder: Path) -> list[Wanted]:
    """Ask for sizes and hashes of a model's files."""
    repository = client.read(f"{hub}/api/models/{model.repository}/revision/{model.revision}?blobs=true", _Repository)
    files = {file.rfilename: file for file in repository.siblings if file.rfilename in FILES}
    missing = [name for name in FILES if name not in files]
    if missing or repository.sha != model.revision:
        raise DownloadError(f"{model.name}: {' and '.join(missing) or 'the pinned revision'} is not there")
    base = f"{hub}/{model.repository}/resolve/{model.revision}"
    return [
        Wanted(folder / name, (f"{base}/{name}",), file.size, file.checksum, _SMALL_BYTES)
        for name, file in files.items()
    ]
