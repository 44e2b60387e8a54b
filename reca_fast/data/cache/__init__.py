"""A cache of encoded pictures: how it lies on disk (`format.py`), what it was made of (`origin.py`), and how it takes
the place of that source (`source.py`). `reca_fast/precompute/` makes one.
"""
