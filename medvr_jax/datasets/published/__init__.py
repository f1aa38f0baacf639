"""Published question sets: one reader per set, of the files exactly as their makers publish them.

A reader is a function of a folder: it yields `Record`s and collects faults, and neither opens images nor knows of
tensorflow-datasets. `checks.py` looks at images and ids, `builders.py` writes ArrayRecord files, and `sets.py` beside
this package is the door to all of it.
"""
