"""One tiled cohort for all tests of training; whoever changes its files takes a copy."""

from pathlib import Path

import pytest

from making.tiled import write_tiled_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiled_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="session")
def truth(cohort: Path) -> Path:
    return cohort.parents[1] / "cohort" / "truth"
