"""The plot of a dry run: how many identities have so many contacts or more."""

from collections.abc import Mapping
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recon.cli.outcome import TITLES
from recon.errors import ReconError

if TYPE_CHECKING:  # matplotlib takes a second to load, so only drawing loads it
    from matplotlib.figure import Figure

_COLOURS = {"present": "#1a73e8", "other": "#e8710a"}


def require() -> None:
    """Raise ReconError unless what draws is installed."""
    if find_spec("matplotlib") is None:
        raise ReconError("--plot needs matplotlib: install recon with its extra, `pip install 'recon[plot]'`")


def write(path: Path, sizes: Mapping[str, Mapping[int, int]]) -> None:
    """Draw how many identities have so many contacts, for each set of guards. Raises OSError."""
    draw(sizes).savefig(path)


def draw(sizes: Mapping[str, Mapping[int, int]]) -> "Figure":
    """Draw a line for each set of guards: with logarithmic axes, the few large identities are seen beside the many."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, found in sizes.items():
        contacts = sorted(found, reverse=True)
        identities = [*accumulate(found[each] for each in contacts)]
        look: dict[str, Any] = {"color": _COLOURS[name], "drawstyle": "steps-post", "marker": "o", "markersize": 3}
        axes.plot(contacts, identities, label=TITLES[name], **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("contacts of an identity")
    axes.set_ylabel("identities with so many or more")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
