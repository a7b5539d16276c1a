"""§5 of the paper: what to do when calibration alone loses too much, and how to measure that it does."""
