"""The plans of splits and blocks: by hand, and compared with an independent model on random histories."""
