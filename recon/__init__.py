"""recon: tells a shop which of its customers are the same person."""

from importlib.metadata import version

__version__ = version("recon")
