"""What is published: the figures, the targets that they are held against, the page and the plot."""
