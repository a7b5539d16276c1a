"""The gate: a float network and an int8 one, by whatever tool, on the same data: what is lost, and is it allowed?

`check.py` is `octavo check`. What can be opened is a row of `KINDS` in `kinds.py`, what can be data one in `data.py`.
"""
