"""The store on disk: what is found, what is refused, damage, eviction, several processes, privacy."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from jambacli.api import Jamba
from jambacli.cache.prefix_store import Prefix, PrefixStore, blob_name, chain_hashes
from jambacli.engine.prefix_cache import SEGMENT, PrefixCache
from jambacli.engine.sequence import TokenSequence
from jambacli.model.state import SequenceState
from tests.support.sequences import close, ids, straight
from tests.support.small_models import small_file, small_model


def stored_sequence(root: Path, kv_type: str = "f32", ctx: int = 4096, space: str = "m") -> TokenSequence:
    sequence = TokenSequence(small_model().model, ctx, kv_type, chunk=64)
    sequence.prefixes = PrefixCache(PrefixStore(root), [f"{space}-{kv_type}"], sequence.state.layout)
    return sequence


def commit(sequence: TokenSequence) -> list[Prefix]:
    found: list[Prefix] = []
    assert isinstance(sequence.prefixes, PrefixCache)
    sequence.checkpoint()
    sequence.prefixes.commit(sequence.content, found.extend)
    sequence.prefixes.flush()
    return found


@pytest.mark.parametrize("kv_type", ["f32", "f16", "bf16"])
def test_another_sequence_starts_from_a_stored_prefix_to_the_bit(tmp_path: Path, kv_type: str) -> None:
    first = stored_sequence(tmp_path, kv_type)
    document, question = ids(SEGMENT * 2 + 100), ids(30, 1)
    first.advance(document, boundaries=[len(document)])
    commit(first)
    expected = first.advance(document + question).copy()
    second = stored_sequence(tmp_path, kv_type)
    found = second.advance(document + question)
    assert second.counters.reused == len(document)
    assert second.counters.prefilled == len(question)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kv_type", ["q8_0", "q5_1", "q4_0"])
def test_keys_and_values_in_blocks_are_stored_to_the_bit_and_never_taken_for_another_type(
    tmp_path: Path, kv_type: str
) -> None:
    model = Jamba.load(small_file(tmp_path, "f32")).model
    document, question = ids(SEGMENT + 20), ids(5, 1)
    sequences = []
    for _ in range(2):
        sequence = TokenSequence(model, 1024, kv_type, chunk=64)
        # Types in one space, as a damaged index could have them: the shapes tell them apart.
        sequence.prefixes = PrefixCache(PrefixStore(tmp_path), ["all"], sequence.state.layout)
        sequences.append(sequence)
        if len(sequences) == 1:
            sequence.advance(document, boundaries=[len(document)])
            commit(sequence)
    first, second = sequences
    expected = first.advance(document + question).copy()
    assert np.array_equal(second.advance(document + question), expected)
    assert second.counters.reused == len(document)
    for token in (50, 51, 52):
        assert np.array_equal(second.step(token), first.step(token))
    for other in {"q8_0", "q5_1", "q4_0", "f16"} - {kv_type}:
        layout = SequenceState(model.config, 1024, other).layout
        assert layout != first.state.layout


def test_the_same_prompt_again_computes_nothing(tmp_path: Path) -> None:
    first, prompt = stored_sequence(tmp_path), ids(100)
    expected = first.advance(prompt, boundaries=[100]).copy()
    commit(first)
    second = stored_sequence(tmp_path)
    assert np.array_equal(second.advance(prompt), expected)
    assert second.counters.prefilled == 0


def test_the_longest_useful_prefix_is_taken(tmp_path: Path) -> None:
    first = stored_sequence(tmp_path)
    head = ids(300)
    first.advance(head + ids(50, 1), boundaries=[100, 200, 300])
    commit(first)
    second = stored_sequence(tmp_path)
    wanted = head[:250] + ids(20, 2)
    assert close(second.advance(wanted), straight(wanted))
    assert second.counters.reused == 200


def test_generated_tokens_are_stored_too(tmp_path: Path) -> None:
    first, prompt = stored_sequence(tmp_path), ids(80)
    first.advance(prompt)
    said = ids(40, 3)
    for token in said:
        first.step(token)
    commit(first)
    expected = first.step(17).copy()
    second = stored_sequence(tmp_path)
    assert np.array_equal(second.advance([*prompt, *said, 17]), expected)
    assert second.counters.prefilled == 1


def test_a_segment_is_written_once(tmp_path: Path) -> None:
    sequence = stored_sequence(tmp_path)
    tokens = ids(SEGMENT * 3)
    sequence.advance(tokens[: SEGMENT * 2])
    commit(sequence)
    before = {p: p.stat().st_ino for p in (tmp_path / "blobs").rglob("*") if p.is_file()}
    sequence.advance(tokens)
    commit(sequence)
    after = {p: p.stat().st_ino for p in (tmp_path / "blobs").rglob("*") if p.is_file()}
    assert before.items() <= after.items()
    caches = sequence.state.caches
    kv = sum(2 * c.k[:1].nbytes for c in caches) * SEGMENT
    sizes = sorted(p.stat().st_size for p in after)
    assert sizes.count(kv) == 3


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "f32"])
def test_size_on_disk_is_what_the_config_says(tmp_path: Path, kv_type: str) -> None:
    sequence = stored_sequence(tmp_path, kv_type)
    sequence.advance(ids(1000), boundaries=[400, 700, 1000])
    commit(sequence)
    config = small_model().config
    total = sum(p.stat().st_size for p in (tmp_path / "blobs").rglob("*") if p.is_file())
    # Every token once, three checkpoints, the logits at the end.
    assert total == 1000 * config.kv_bytes_per_token(kv_type) + 3 * config.state_bytes() + 4 * config.vocab_size


def test_spaces_do_not_mix(tmp_path: Path) -> None:
    first, prompt = stored_sequence(tmp_path), ids(100)
    first.advance(prompt)
    commit(first)
    for other in (stored_sequence(tmp_path, "f16"), stored_sequence(tmp_path, space="other")):
        other.advance([*prompt, 5])
        assert other.counters.reused == 0


@pytest.mark.parametrize("what", ["flip", "cut", "empty", "gone", "prefix"])
def test_damage_is_noticed_deleted_and_recomputed(tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    first, prompt = stored_sequence(tmp_path), ids(SEGMENT + 50)
    first.advance(prompt)
    commit(first)
    target = "index" if what == "prefix" else "blobs"
    for path in [p for p in (tmp_path / target).rglob("*") if p.is_file()]:
        data = bytearray(path.read_bytes())
        if what == "flip":
            data[len(data) // 2] ^= 1
        elif what == "gone":
            path.unlink()
            continue
        path.write_bytes(data[:10] if what in ("cut", "prefix") else b"" if what == "empty" else data)
    second = stored_sequence(tmp_path)
    wanted = [*prompt, 7]
    assert close(second.advance(wanted), straight(wanted))
    assert second.counters.prefilled == len(wanted)
    assert ("damaged" in caplog.text) == (what != "gone")
    # The damaged file is gone, so a third sequence finds nothing and warns of nothing.
    caplog.clear()
    third = stored_sequence(tmp_path)
    third.advance(wanted)
    assert "damaged" not in caplog.text


def test_a_restore_that_is_interrupted_leaves_an_empty_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, prompt = stored_sequence(tmp_path), ids(SEGMENT * 2 + 50)
    first.advance(prompt)
    commit(first)
    load_kv, loaded = SequenceState.load_kv, []

    def interrupted(state: SequenceState, start: int, *rest: object) -> None:
        loaded.append(start)
        if len(loaded) == 2:
            raise KeyboardInterrupt
        load_kv(state, start, *rest)  # type: ignore[arg-type]

    second = stored_sequence(tmp_path)
    second.advance(prompt[:100])
    wanted = [*prompt, 7]
    with monkeypatch.context() as patch:
        patch.setattr(SequenceState, "load_kv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            second.advance(wanted)
    assert second.tokens == [] and second.consistent
    assert close(second.advance(wanted), straight(wanted))
    assert second.counters.reused == len(prompt)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("segment_tokens", SEGMENT - 52),  # a digit that flipped: every segment holds enough, at other tokens
        ("segment_tokens", SEGMENT * 4),
        ("segment_tokens", "512"),
        ("segments", ["a" * 5000]),
        ("segments", ["../../lock"]),
        ("documents", [5]),
        ("position", 1.5),
    ],
)
def test_an_index_that_says_something_else_never_gives_another_state(tmp_path: Path, field: str, value: object) -> None:
    first, prompt = stored_sequence(tmp_path), ids(SEGMENT * 2 + 100)
    first.advance(prompt, boundaries=[900])
    commit(first)
    paths = [p for p in (tmp_path / "index").rglob("*") if p.name.startswith("00000900-")]
    assert len(paths) == 1
    paths[0].write_text(json.dumps({**json.loads(paths[0].read_text()), field: value}))
    second, wanted = stored_sequence(tmp_path), [*prompt[:900], 7, 8, 9]
    assert close(second.advance(wanted), straight(wanted))


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    prompts = [ids(200, seed) for seed in range(4)]
    for i, prompt in enumerate(prompts):
        sequence = stored_sequence(tmp_path)
        sequence.advance(prompt)
        commit(sequence)
        for path in (tmp_path / "index").rglob("*-*"):
            if path.is_file() and path.stat().st_mtime > time.time() - 100:
                os.utime(path, (1000 + i, 1000 + i))
    store = PrefixStore(tmp_path)
    full = store.stats()["bytes"]
    again = stored_sequence(tmp_path)
    again.advance([*prompts[0], 3])
    assert again.counters.reused == 200
    small = PrefixStore(tmp_path, budget=full // 2)
    assert small.evict() > 0
    assert small.stats()["bytes"] <= full // 2
    reused = []
    for prompt in prompts:
        sequence = stored_sequence(tmp_path)
        sequence.advance([*prompt, 3])
        reused.append(sequence.counters.reused)
    assert reused[0] == 200 and reused[1] == 0


def test_clearing_forgets_everything_or_one_document(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        sequence = stored_sequence(tmp_path)
        assert isinstance(sequence.prefixes, PrefixCache)
        sequence.prefixes.documents = [name]
        sequence.advance(ids(100, seed))
        commit(sequence)
    store = PrefixStore(tmp_path)
    store.clear("a")
    found = []
    for seed in (0, 1):
        sequence = stored_sequence(tmp_path)
        sequence.advance([*ids(100, seed), 3])
        found.append(sequence.counters.reused)
    assert found == [0, 100]
    store.clear()
    assert store.stats()["bytes"] == 0 and store.stats()["prefixes"] == 0


def test_the_directory_is_the_users_alone(tmp_path: Path) -> None:
    sequence = stored_sequence(tmp_path / "p")
    sequence.advance(ids(100))
    commit(sequence)
    assert stat.S_IMODE((tmp_path / "p").stat().st_mode) == 0o700
    for path in (tmp_path / "p").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_chain_hashes_depend_on_every_token_and_the_space() -> None:
    tokens = ids(50)
    whole = chain_hashes("s", tokens, [10, 50, 60])
    assert set(whole) == {10, 50}
    assert whole[10] == chain_hashes("s", tokens[:10], [10])[10]
    assert whole[50] != chain_hashes("t", tokens, [50])[50]
    assert whole[50] != chain_hashes("s", [tokens[0] + 1, *tokens[1:]], [50])[50]


def _hammer(root: Path, seed: int, seconds: float, budget: int) -> None:
    rng = random.Random(seed)
    store = PrefixStore(root, budget)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = [rng.randbytes(rng.randrange(1000, 20000)) for _ in range(3)]
        names = [blob_name(d) for d in data]
        tokens = [rng.randrange(100) for _ in range(20)]
        chain = chain_hashes("s", tokens, [20])[20]
        with store.writing():
            for d, name in zip(data, names, strict=True):
                store.put_blob(d, name, durable=False)
            store.put_prefix("s", Prefix(20, chain, names[0], names[1:], 512))
        store.evict()
        for prefix in store.find("s", tokens):
            for name in prefix.blobs:
                got = store.get_blob(name)
                assert got is None or blob_name(got) == name


def test_processes_share_the_store_and_keep_its_budget(tmp_path: Path) -> None:
    budget = 300_000
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_hammer, args=(tmp_path, seed, 4.0, budget)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    store = PrefixStore(tmp_path, budget)
    store.evict()
    assert store.stats()["bytes"] <= budget


def test_killed_writers_leave_a_valid_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for seed in range(5):
        worker = context.Process(target=_hammer, args=(tmp_path, seed, 30.0, 300_000))
        worker.start()
        time.sleep(1.2 + 0.1 * seed)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
    store = PrefixStore(tmp_path, 300_000)
    store.evict()
    store.stats()
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file():
            assert not path.name.startswith("."), "an orphan of a killed process was left"
            assert blob_name(path.read_bytes()) == path.name
