"""pandas DataFrames as Arrow files: values, indexes, labels, and how they lie in the file.

What is written is a description from which exactly the same frame is built again, so only what has such a
description is written; `Inexact` says that a value has none, and the caller pickles it.
"""
