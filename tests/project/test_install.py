"""`make install` with real Pythons: it checks what it needs first, and a failed installation can be repeated."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

# These tests need no packages, whose installation takes a minute.
NO_PACKAGES = ["PIP=:", "INSTALL=:"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the Makefile and nothing installed."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run make."""
    return subprocess.run(
        ["make", *NO_PACKAGES, *arguments], cwd=project, capture_output=True, text=True, timeout=60, check=False
    )


def works(project: Path) -> bool:
    """Whether the project's virtual environment is in this folder, and has a real Python with pip."""
    python = project / ".venv/bin/python"
    done = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
    return done.returncode == 0 and python.is_symlink() and str(project) in (project / ".venv/bin/activate").read_text()


def program(path: Path, text: str) -> Path:
    """Write a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# Each behaves like the real Python as far as `make` checks it.
OLD = f"""[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 12, 'final', 0)
import platform; platform.python_version = lambda: '3.10.12'
$2"
exec {sys.executable} "$@" """
WITHOUT_VENV = f"""[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.modules['ensurepip'] = None
$2"
mkdir -p .venv/bin && ln -sf {sys.executable} .venv/bin/python
exit 1"""


def test_python_is_too_old(project: Path) -> None:
    """One line names the required version, the version found, and how to choose another; nothing is created."""
    old = program(project / "python3.10", OLD)

    done = make(project, "install", f"PYTHON={old}")

    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert "recon needs Python 3.11 or newer" in line
    assert f"{old} is 3.10.12" in line
    assert "make PYTHON=" in line
    assert not (project / ".venv").exists()


def test_python_does_not_exist(project: Path) -> None:
    """If the Python does not exist, make prints one line, after the shell's own."""
    done = make(project, "install", "PYTHON=python3.99")

    assert done.returncode != 0
    assert "python3.99 is not there" in done.stderr.splitlines()[-1]


def test_venv_is_not_installed(project: Path) -> None:
    """On Debian and Ubuntu, venv is a separate package: one line names it."""
    python = program(project / "python3", WITHOUT_VENV)

    done = make(project, "install", f"PYTHON={python}")

    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert "apt install python3-venv" in line
    assert not (project / ".venv").exists()


def dangling(project: Path) -> None:
    """Damage: Python was upgraded or removed."""
    python = project / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3")


def without_pip(project: Path) -> None:
    """Damage: ensurepip was missing when .venv was created."""
    for packages in (project / ".venv/lib").glob("python*/site-packages/pip"):
        shutil.rmtree(packages)


def moved(project: Path) -> None:
    """Damage: the project was moved, so the programs in .venv name a Python that does not exist."""
    activate = project / ".venv/bin/activate"
    activate.write_text(activate.read_text().replace(str(project), "/nowhere"))


def of_an_old_python(project: Path) -> None:
    """Damage: .venv was created by an unsupported version of Python."""
    python = project / ".venv/bin/python"
    python.unlink()
    program(python, OLD)


def test_an_environment_that_does_not_work_is_created_again(project: Path) -> None:
    """A damaged .venv is created again, and a working one is kept."""
    assert make(project, "install", f"PYTHON={sys.executable}").returncode == 0
    kept = (project / ".venv/pyvenv.cfg").stat().st_ino
    assert make(project, "install", "PYTHON=python3.99").returncode == 0
    assert (project / ".venv/pyvenv.cfg").stat().st_ino == kept

    for damage in (dangling, without_pip, moved, of_an_old_python):
        damage(project)

        done = make(project, "install", f"PYTHON={sys.executable}")

        assert done.returncode == 0, (damage, done.stderr)
        assert works(project), damage
