"""Markup that Jamba models write into their text."""

from __future__ import annotations

#: Around the numbers of the documents that an answer is based on.
CITATIONS, CITATIONS_END = "<citations>", "</citations>"
#: Around what a model thinks before it answers.
THINK, THINK_END = "<think>", "</think>"
