"""The measures of each epoch for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsiseg.run.errors import UsageError


class Curves:
    """Writes measures to TensorBoard's files in a folder.

    Args:
        folder: Where to write.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  an extra that few want
        except ModuleNotFoundError as error:
            raise UsageError("--tensorboard needs TensorBoard", "pip install 'wsiseg[tensorboard]'") from error
        self._writer = SummaryWriter(str(folder))

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the measures of an epoch; what is None is left out."""
        for name, value in row.items():
            if value is not None and name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()
