"""Code that tests share: recon as a process, databases, models, load, faults, checkers."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
