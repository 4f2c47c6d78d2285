"""The environment of the measurement: the machine, the versions, the disk."""

import os
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from bench.load import wrk
from bench.load.watch import MIB
from bench.systems.postgres import SHOWN, Postgres

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("recon", "aiohttp", "asyncpg", "uvloop", "pydantic", "gunicorn")
FLUSHES = 200  # flushed writes of a page, to measure the disk
PAGE = 8192  # bytes


def describe(data_dir: Path, postgres: Postgres) -> dict[str, str]:
    """Describe the machine, as the result page shows it."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / MIB / 1024:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system": f"{_file_system(data_dir)}; a flushed 8 KiB write takes {_flush_ms(data_dir):.2f} ms (median)",
        "load before": ", ".join(f"{average:.2f}" for average in os.getloadavg()),
        "PostgreSQL": f"{postgres.settings['server_version']}, Unix socket; "
        + ", ".join(f"{name} {postgres.settings[name]}" for name in SHOWN),
        "Python": f"{platform.python_version()}; " + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "load generator": wrk.version(),
        "source": source(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


def _file_system(folder: Path) -> str:
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def _flush_ms(folder: Path) -> float:
    taken = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(FLUSHES):
            started = time.perf_counter()
            file.write(bytes(PAGE))
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000


def source() -> str:
    """Return the commit that is measured."""

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 (our own arguments)
            ["git", *arguments],  # noqa: S607 (whichever git there is)
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "recon", "bench")
        return f"commit {git('rev-parse', '--short=12', 'HEAD')}{' with changes' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
