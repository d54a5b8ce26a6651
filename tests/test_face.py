"""What `import wsiseg` offers."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import wsiseg


def test_a_name_of_the_package_is_never_a_module_too() -> None:
    assert not set(wsiseg.__all__) & {module.name for module in pkgutil.iter_modules(wsiseg.__path__)}


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_verb_is_a_function_however_it_is_imported(name: str) -> None:
    assert callable(getattr(wsiseg, name))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"wsiseg.{name}")


def test_python_m_wsiseg_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "wsiseg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{wsiseg.__version__}\n"
