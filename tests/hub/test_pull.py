"""Pulling from a hub and a registry: which file a name downloads, where it is stored, and what the server is asked for."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from jambacli.errors import JambaError
from jambacli.hub import download, resolve
from jambacli.hub.preview import DownloadFit
from jambacli.hub.pull import NeedsConversion, PullOptions, pull
from jambacli.hub.resolve import resolve_model
from jambacli.hub.store import Store
from tests.support.cli_runner import jamba
from tests.support.hub_fixtures import REPO, STEM
from tests.support.hub_servers import COMMIT, Repo, Server, git_hash
from tests.support.pulls import file_of, get, tree


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("jamba:3b", "Q4_K_M"),
        ("jamba:3b-q4_0", "Q4_0"),
        ("JAMBA:2-3B-Q8_0", "Q8_0"),
        (f"hf.co/{REPO}:q8_0", "Q8_0"),
        (f"https://huggingface.co/{REPO}", "Q4_K_M"),
        (REPO, "Q4_K_M"),
        (f"{REPO}:F32", "F32"),
        (f"{REPO}/{STEM}-Q4_0.gguf", "Q4_0"),
        (f"https://huggingface.co/{REPO}/blob/main/{STEM}-Q4_0.gguf", "Q4_0"),
    ],
)
def test_every_form_of_name_pulls_the_right_file(name: str, kind: str, hub: Server, models: dict[str, bytes]) -> None:
    entry = get(name)
    assert entry.quant == kind
    assert file_of(entry) == models[kind]
    assert resolve_model(name) == Store().paths(entry)[0]
    assert entry.files[0].sha256 == hashlib.sha256(models[kind]).hexdigest()
    assert sum(last - first for _, first, last in hub.asked) == len(models[kind])


def test_names_of_the_same_bytes_share_them(hub: Server, models: dict[str, bytes]) -> None:
    first = get("jamba:3b")
    hub.asked.clear()
    second = get(f"{REPO}:Q4_K_M")
    hub.add_ollama("library/jamba", "3b", models["Q4_K_M"])
    third = get("ollama:jamba:3b")
    assert hub.asked == []
    assert Store().paths(first) == Store().paths(second) == Store().paths(third)
    assert len(Store().entries()) == 3
    assert Store().remove(first.name) == 0 and Store().remove(second.name) == 0
    assert resolve_model("ollama:jamba:3b").is_file()
    assert Store().remove(third.name) == len(models["Q4_K_M"])
    assert tree(Store().root) == set()


def test_split_files(hub: Server, split: dict[str, bytes]) -> None:
    from jambacli.gguf.reader import GGUFFile

    assert len(split) > 1
    entry = get("jamba:3b-q6_k")
    assert [p.read_bytes() for p in Store().paths(entry)] == list(split.values())
    with GGUFFile.open(resolve_model("jamba:3b-q6_k")) as file:
        assert len(file.paths) == len(split)
    part = list(split)[1]
    assert resolve_model(f"{REPO}/{STEM}-Q6_K/{part}") == Store().paths(entry)[0]


def test_a_split_file_with_a_part_missing_is_refused(hub: Server, split: dict[str, bytes]) -> None:
    del hub.repos[REPO].files[f"{STEM}-Q6_K/{list(split)[-1]}"]
    with pytest.raises(JambaError, match="upload is incomplete"):
        get("jamba:3b-q6_k")
    assert hub.asked == []


def test_revisions(hub: Server, models: dict[str, bytes]) -> None:
    old = "f" * 40
    repo = hub.repos[REPO]
    repo.revisions |= {"v1": old}
    repo.at[old] = {f"{STEM}-Q4_K_M.gguf": models["Q4_0"]}
    entry = get(f"{REPO}@v1:Q4_K_M")
    assert file_of(entry) == models["Q4_0"] and entry.source["commit"] == old
    assert file_of(get("jamba:3b", revision="v1")) == models["Q4_0"]
    assert file_of(get("jamba:3b")) == models["Q4_K_M"]
    assert resolve_model(f"{REPO}@v1") != resolve_model(REPO)
    assert resolve_model("jamba:3b").read_bytes() == models["Q4_K_M"]
    with pytest.raises(JambaError, match="has no revision 'v2'"):
        get(REPO, revision="v2")


def test_a_new_upload_replaces_the_old_one(hub: Server, models: dict[str, bytes]) -> None:
    get("jamba:3b")
    hub.repos[REPO].revisions["main"] = "e" * 40
    hub.repos[REPO].files[f"{STEM}-Q4_K_M.gguf"] = models["F32"]
    entry = get("jamba:3b")
    assert file_of(entry) == models["F32"]
    assert len([f for f in tree(Store().root) if f.endswith(".gguf")]) == 1


def test_ollama(server: Server, models: dict[str, bytes]) -> None:
    server.add_ollama("library/jamba", "latest", models["Q8_0"])
    server.add_ollama("someone/jamba", "small", models["Q4_0"])
    assert file_of(get("ollama:jamba")) == models["Q8_0"]
    assert file_of(get("ollama:someone/jamba:small")) == models["Q4_0"]
    host = server.url.removeprefix("http://")
    direct = get(f"ollama:http://{host}/someone/jamba:small")
    assert Store().paths(direct) == Store().paths(get("ollama:someone/jamba:small"))
    for name, message in (("ollama:nothing", "no such model or tag"), ("ollama:jamba:8b", "no such model or tag")):
        with pytest.raises(JambaError, match=message):
            get(name)


def test_a_blob_of_a_local_ollama_is_used_in_place(server: Server, models: dict[str, bytes], tmp_path: Path) -> None:
    digest = server.add_ollama("library/jamba", "latest", models["Q8_0"])
    blob = tmp_path / "ollama" / "blobs" / digest.replace(":", "-")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(models["Q8_0"])
    assert resolve_model(get("ollama:jamba").name) == blob
    assert server.asked == []


def cache_file(root: Path, name: str, data: bytes) -> Path:
    """A file as the hub library's cache keeps it."""
    home = root / "hf" / "hub" / f"models--{REPO.replace('/', '--')}"
    blob = home / "blobs" / hashlib.sha256(data).hexdigest()
    place = home / "snapshots" / COMMIT / name
    for folder in (blob.parent, place.parent, home / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    place.symlink_to(blob)
    (home / "refs" / "main").write_text(COMMIT)
    return place


def test_a_file_in_the_hubs_cache_is_used_in_place(
    hub: Server, models: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    place = cache_file(tmp_path, f"{STEM}-Q4_K_M.gguf", models["Q4_K_M"])
    assert resolve_model(get("jamba:3b").name) == place
    assert hub.asked == []
    assert not any(f.endswith(".gguf") for f in tree(Store().root))
    Store().remove("jamba:3b")
    assert place.read_bytes() == models["Q4_K_M"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model(get(f"{REPO}:Q4_K_M").name) == place
    with pytest.raises(JambaError, match="offline mode"):
        get("jamba:mini")


def test_a_damaged_copy_in_the_cache_is_not_used(hub: Server, models: dict[str, bytes], tmp_path: Path) -> None:
    place = cache_file(tmp_path, f"{STEM}-Q4_K_M.gguf", models["Q4_K_M"])
    place.resolve().write_bytes(models["Q4_K_M"][:-1] + b"?")
    assert file_of(get("jamba:3b")) == models["Q4_K_M"]


def test_a_local_file_is_registered_in_place(tmp_path: Path, models: dict[str, bytes]) -> None:
    path = tmp_path / "My Model.gguf"
    path.write_bytes(models["Q4_0"])
    with pytest.raises(JambaError, match="choose another name"):
        get(str(path))
    get(str(path), own_name="mine:small")
    assert resolve_model("mine:small") == path
    assert resolve.is_model_name("mine:small")
    path.write_bytes(b"shorter")
    with pytest.raises(JambaError, match="is missing or was changed"):
        resolve_model("mine:small")
    Store().remove("mine:small")
    assert path.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.gguf", "no such file"),
        ("./a/gone.gguf", "no such file"),
        ("here/gone.gguf", "no such file"),
        ("", "'' is not a model name"),
        (" ", "is not a model name"),
    ],
)
def test_a_path_to_nothing_is_not_reported_as_an_unknown_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    done = jamba("pull", name)
    assert done.returncode != 0 and message in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_files_stored_in_git_are_verified_too(hub: Server, models: dict[str, bytes]) -> None:
    hub.repos[REPO].lfs = False
    entry = get("jamba:3b")
    assert entry.files[0].sha256 == hashlib.sha256(models["Q4_K_M"]).hexdigest()
    assert entry.set_id == f"git-{git_hash(models['Q4_K_M'])}"
    hub.trouble.corrupt = True
    with pytest.raises(JambaError, match="damaged"):
        get("jamba:3b-q8_0")


def test_a_listing_without_sizes_is_completed(hub: Server, models: dict[str, bytes]) -> None:
    hub.repos[REPO].sizes_listed = False
    assert file_of(get("jamba:3b")) == models["Q4_K_M"]


def test_users_own_aliases(hub: Server, models: dict[str, bytes], own_home: Path) -> None:
    own_home.mkdir()
    own = own_home / "aliases.json"
    aliases = {"mine": f"{REPO}:Q8_0", "jamba:3b": "mine", "loop": "loop:2", "loop:2": "loop"}
    own.write_text(json.dumps({"aliases": aliases, "models": {"acme:tiny": {"gguf": [REPO], "quant": "q4_0"}}}))
    for name, kind in (("mine", "Q8_0"), ("jamba:3b", "Q8_0"), ("acme:tiny", "Q4_0"), ("acme:tiny-f32", "F32")):
        entry = get(name)
        assert (entry.name, file_of(entry)) == (name, models[kind])
    with pytest.raises(JambaError, match="form a cycle"):
        get("loop")
    for text in ("[]", "{", '{"aliases": {"a b": "x"}}', '{"models": {"x": {"gguf": ["../x"]}}}'):
        own.write_text(text)
        with pytest.raises(JambaError, match=r"aliases\.json"):
            get("jamba:3b")


def test_errors_list_what_exists(hub: Server, models: dict[str, bytes]) -> None:
    hub.repos["a/many"] = Repo({"m-Q8_0.gguf": models["Q8_0"], "m-Q4_0.gguf": models["Q4_0"]})
    hub.repos["a/two"] = Repo({"a-Q8_0.gguf": models["Q8_0"], "b-Q8_0.gguf": models["Q4_0"]})
    hub.repos["a/none"] = Repo({"README.md": b"hello"})
    for name, message in (
        ("a/many", "it has Q4_0 .*Q8_0 .*; name one, like a/many:Q"),
        ("a/many:Q5_K_M", "no GGUF of type Q5_K_M; it has Q4_0"),
        ("a/many/m-Q8-0.gguf", "did you mean m-Q8_0.gguf"),
        ("a/two:Q8_0", "could be any of a-Q8_0.gguf, b-Q8_0.gguf"),
        ("a/none", "no GGUF files at all"),
        ("jamba:3b-q3_k_s", "no GGUF of type Q3_K_S; it has .*; set quant to make it from the checkpoint"),
        ("jamba:4b", "did you mean jamba:3b"),
        ("jamab:q4_0", "did you mean jamba:q4_0"),
        ("jamba:minni-q4_0", "did you mean jamba:mini-q4_0"),
    ):
        with pytest.raises(JambaError, match=message):
            get(name)
    assert tree(Store().root) == set()


def test_conversion_is_offered_when_there_are_only_safetensors(hub: Server) -> None:
    hub.repos["ai21labs/Jamba-v0.1"] = Repo({"config.json": b"{}", "model.safetensors": b"x" * 2000})
    for name in ("ai21labs/Jamba-v0.1", "jamba:v0.1"):
        with pytest.raises(NeedsConversion, match=r"only an HF checkpoint.*; set quant to convert") as needed:
            get(name)
        assert (needed.value.offer.repo, needed.value.offer.quant) == ("ai21labs/Jamba-v0.1", "Q4_K_M")
    assert hub.asked == []


def test_the_fit_is_assessed_before_the_download(hub: Server, models: dict[str, bytes]) -> None:
    seen: list[DownloadFit] = []

    def stop(fit: DownloadFit) -> None:
        seen.append(fit)
        raise JambaError("no, thank you")

    with pytest.raises(JambaError, match="no, thank you"):
        pull(f"{REPO}:F32", PullOptions(ctx=2048), stop)
    assert seen[0].size == len(models["F32"]) and seen[0].plan.ctx == 2048 and seen[0].fits
    assert Store().entries() == []


def test_last_used(hub: Server, tmp_path: Path, models: dict[str, bytes]) -> None:
    assert resolve.last_used() is None
    get("jamba:3b")
    get("jamba:3b-q4_0")
    resolve.remember_used("jamba:3b")
    assert resolve.last_used() == resolve_model("jamba:3b")
    resolve.remember_used(resolve_model("jamba:3b-q4_0"))
    assert Store().last_used() == "jamba:3b-q4_0"
    path = tmp_path / "own.gguf"
    path.write_bytes(models["Q8_0"])
    resolve.remember_used(path)
    assert resolve.last_used() == path
    path.unlink()
    assert resolve.last_used() is None
    assert set(Store().use_times()) == {"jamba:3b", "jamba:3b-q4_0", str(path)}


def test_a_missing_file_is_downloaded_again(hub: Server, models: dict[str, bytes]) -> None:
    entry = get("jamba:3b")
    shutil.rmtree(Store().paths(entry)[0].parent)
    with pytest.raises(JambaError, match="jamba pull jamba:3b"):
        resolve_model("jamba:3b")
    assert file_of(get("jamba:3b")) == models["Q4_K_M"]
    Store().paths(entry)[0].write_bytes(b"GGUF")
    assert file_of(get("jamba:3b")) == models["Q4_K_M"]


def test_without_a_network_a_pulled_model_is_kept(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TRIES", 1)
    entry = get("jamba:3b")
    hub.trouble.answers = [(503, {})] * 3
    assert get("jamba:3b") == entry
