"""Fixtures for tests that pull: small real models, a hub server that has them, and a hub library isolated from this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jambacli.hub import download
from tests.support import jamba_gguf
from tests.support.hub_servers import Repo, Server, running
from tests.support.jamba_gguf import Shape

SMALL = Shape(layers=2, hidden=64, ffn=64, experts=2, attention=(1,), heads=2, kv_heads=1, dt_rank=8, vocab=32)
REPO = "bartowski/ai21labs_AI21-Jamba2-3B-GGUF"
STEM = "ai21labs_AI21-Jamba2-3B"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Bytes of small Jamba GGUFs by the type they are given out as (all different; F32 is the largest)."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {"Q4_K_M": ("bf16", 1), "Q8_0": ("bf16", 2), "Q4_0": ("f16", 3), "F32": ("f32", 4)}
    return {
        name: jamba_gguf.write(folder / f"{name}.gguf", SMALL, kind=kind, seed=seed).read_bytes()
        for name, (kind, seed) in kinds.items()
    }


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of a split model by file name."""
    import gguf

    folder = tmp_path_factory.mktemp("split")
    whole = gguf.GGUFReader(jamba_gguf.write(folder / "whole.gguf", SMALL, seed=7))
    stem = f"{STEM}-Q6_K"
    writer = gguf.GGUFWriter(folder / f"{stem}.gguf", "jamba", split_max_tensors=9)
    for key, item in whole.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = item.types[0]
            writer.add_key_value(key, item.contents(), kind, item.types[-1] if len(item.types) > 1 else None)
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"{stem}-*.gguf"))}


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model of some megabytes, larger than the head that is downloaded first."""
    shape = Shape(layers=2, hidden=256, ffn=512, experts=4, attention=(1,), vocab=64)
    return jamba_gguf.write(tmp_path_factory.mktemp("large") / "large.gguf", shape, seed=9).read_bytes()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A hub and an Ollama registry, the only ones configured for this process and those it starts."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(download, "FIRST_WAIT", 0.0)
    with running() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("JAMBA_OLLAMA_REGISTRY", served.url)
        yield served


@pytest.fixture
def hub(server: Server, models: dict[str, bytes], split: dict[str, bytes]) -> Server:
    """The server with a typical repository: several types side by side, and a split one in a folder."""
    files = {f"{STEM}-{name}.gguf": data for name, data in models.items()}
    files |= {f"{STEM}-Q6_K/{name}": data for name, data in split.items()}
    files |= {"README.md": b"# a model", f"{STEM}-imatrix.gguf": b"GGUF no model"}
    server.repos[REPO] = Repo(files)
    return server
