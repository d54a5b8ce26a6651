"""Hand PyPI the README with links that lead somewhere from there; in the repository they stay relative."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute(text: str, source: str) -> str:
    """Return Markdown whose relative links and pictures lead to the files of a repository on GitHub."""
    raw = source.replace("github.com", "raw.githubusercontent.com") + "/main/"
    text = re.sub(r"(!\[[^]]*\]\()(?!\w+:|#)", rf"\1{raw}", text)
    return re.sub(r"(?<!!)(\[[^]]*\]\()(?!\w+:|#)", rf"\1{source}/blob/main/", text)


class Readme(MetadataHookInterface):
    """What the build calls."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the page to the metadata of the package."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        page = absolute(text, metadata["urls"]["Source"])
        metadata["readme"] = {"content-type": "text/markdown", "text": page}
