"""The maths of Jamba: sizes, layers and the state of a sequence. Weights come from ``runtime.loader``."""
