"""The benchmark, without its load: the plot."""

from itertools import combinations
from pathlib import Path

from matplotlib.text import Text

from bench.load.workloads import WORKLOADS
from bench.report import page, plot

RESULTS = Path(__file__).parent.parent / "bench" / "results"


def test_every_label_of_the_plot_can_be_read() -> None:
    """No text of the published plot overlaps another or leaves the picture, and each workload is explained."""
    figure = plot.draw(page.read(RESULTS))
    figure.draw_without_rendering()

    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]

    overlapping = [(one, other) for (one, box), (other, box_2) in combinations(boxes, 2) if box.overlaps(box_2)]
    assert overlapping == []
    drawn, picture = figure.get_tightbbox(), figure.bbox_inches
    assert drawn.x0 >= 0 <= drawn.y0
    assert drawn.x1 <= picture.x1
    assert drawn.y1 <= picture.y1
    shown = {" ".join(text.split()) for text, _ in boxes}
    assert {f"{name} {WORKLOADS[name].title}" for name in ("new", "known", "known-1m", "any-1m", "hot", "mix")} <= shown
