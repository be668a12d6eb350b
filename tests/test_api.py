"""The Python API: loading by path and by checkpoint directory, logits, sessions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jambacli import Jamba
from jambacli.errors import JambaError
from tests.support.small_models import small_file


def test_logits_are_one_row_a_token_and_do_not_depend_on_the_pieces(tmp_path: Path) -> None:
    model = Jamba.load(small_file(tmp_path, "f32"))
    ids = list(range(10, 90))
    logits = model.logits(ids)
    assert logits.shape == (80, model.config.vocab_size) and logits.dtype == torch.float32
    pieces = model.logits(ids, chunk=7)
    assert torch.allclose(logits, pieces, rtol=0, atol=1e-4 * float(logits.abs().max()))
    with pytest.raises(JambaError, match="no tokens"):
        model.logits([])


def test_a_checkpoint_directory_loads_and_is_converted_once(tmp_path: Path, own_home: Path) -> None:
    from tests.support.checkpoints import load_f32, make_checkpoint

    folder = make_checkpoint(tmp_path / "checkpoint", "moe4")
    first = Jamba.load(folder)
    (made,) = (own_home / "converted").iterdir()
    stamp = made.stat().st_mtime_ns
    second = Jamba.load(folder)
    assert made.stat().st_mtime_ns == stamp
    ids = [5, 6, 7, 8, 9]
    assert torch.equal(first.logits(ids), second.logits(ids))
    with torch.no_grad():
        expected = load_f32(folder)(torch.tensor([ids])).logits[0]
    # The checkpoint's own precision may be bf16: what matters here is that it is this model.
    assert torch.equal(first.logits(ids).argmax(-1), expected.argmax(-1))


def test_several_prompts_are_answered_as_each_is_alone() -> None:
    from jambacli.engine.generate import Thought
    from tests.support.small_models import small_model

    for model in (small_model(), small_model(None)):
        prompts = [f"Count {i} herons at the lake." for i in range(10)]
        replies = model.generate_batch(prompts, ctx=512, parallel=4, temperature=0, max_tokens=6)
        for prompt, reply in zip(prompts, replies, strict=True):
            with model.session(ctx=512, store=False) as session:
                say = session.send if model.template is not None else session.complete
                said = say(prompt, temperature=0, max_tokens=6)
                assert reply.text == "".join(piece for piece in said if not isinstance(piece, Thought))
            assert reply.error is None and reply.finish in ("stop", "length") and reply.prompt_tokens > 5
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    good, wrong, bad = small_model().generate_batch([messages, "herons " * 999, []], ctx=512, max_tokens=3)
    assert good.text and isinstance(wrong.error, JambaError) and isinstance(bad.error, JambaError)
