"""Sessions whose store fails while they run: the conversation is kept wherever it can be, and nothing waits for ever."""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path

import pytest

from jambacli.api import Jamba
from jambacli.cache.prefix_store import PrefixStore
from jambacli.errors import JambaError
from jambacli.files import jamba_home
from jambacli.session import session_file
from jambacli.session.session import Session
from tests.support.small_models import small_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Jamba:
    return Jamba.load(small_file(tmp_path_factory.mktemp("model"), "f32"))


def said(session: Session, text: str) -> str:
    return "".join(session.send(text, max_tokens=3, temperature=0))


def test_a_conversation_is_saved_where_its_state_finds_no_room(
    model: Jamba, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with model.session(name="kept") as session:
        said(session, "one")
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(PrefixStore, "put_blob", full)
            said(session, "two")
            said(session, "three")
            session.prefix_cache.flush()  # type: ignore[union-attr]
        turns = [t.to_json() for t in session.conversation.turns]
        assert len([r for r in caplog.records if "No space left" in r.message]) == 1
    with model.session(resume="kept") as again, model.session(store=False) as other:
        assert [t.to_json() for t in again.conversation.turns] == turns
        for text in ("one", "two", "three"):
            said(other, text)
        assert said(again, "four") == said(other, "four")
    session_file.remove("kept")


def test_a_session_that_cannot_be_written_says_so_once_and_goes_on(
    model: Jamba, caplog: pytest.LogCaptureFixture
) -> None:
    with model.session(name="blocked") as session, caplog.at_level(logging.WARNING):
        path = session_file.session_path("blocked")
        path.mkdir()
        said(session, "one")
        said(session, "two")
        with pytest.raises(JambaError, match=r"blocked\.json"):
            session.save()
        assert len([r for r in caplog.records if "the conversation is not saved" in r.message]) == 1
        path.rmdir()
        said(session, "three")  # the next turn is saved, with those before it
        session.save()
        turns = [t.to_json() for t in session.conversation.turns]
    assert session_file.read("blocked").turns == turns
    session_file.remove("blocked")


def test_a_store_that_is_deleted_meanwhile_is_made_again_or_missed(
    model: Jamba, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAMBA_HOME", str(tmp_path / "home"))
    with model.session(name="gone") as session:
        said(session, "one")
        session.prefix_cache.flush()  # type: ignore[union-attr]
        shutil.rmtree(jamba_home())
        said(session, "two")
        said(session, "three")
        texts = [t.content for t in session.conversation.turns]
        assert len(texts) == 6
