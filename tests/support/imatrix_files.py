"""Writes importance matrices as llama-imatrix does, in GGUF, through the gguf package."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_imatrix(path: Path, entries: dict[str, tuple[np.ndarray, list[int]]]) -> Path:
    """``entries``: tensor name to sums of squares, float32 [experts, n], and the number of inputs of each expert."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.train", "code"])
    writer.add_uint32("imatrix.chunk_count", 12)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(name + ".in_sum2", sums)
        writer.add_tensor(name + ".counts", np.array(counts, np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
