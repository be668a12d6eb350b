"""The GGUF file format, read and written, and the keys and tensor names of Jamba models in it."""
