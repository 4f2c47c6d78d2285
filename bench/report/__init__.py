"""The results: the figures, the targets that they are compared with, the page and the plot."""
