"""The built-in calibration text: every class is there, spread evenly, in many scripts, and the same at every call."""

from __future__ import annotations

import unicodedata

from jambacli import data

SCRIPTS = {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "CJK", "HIRAGANA", "KATAKANA", "HANGUL", "DEVANAGARI", "BENGALI",
           "TAMIL", "THAI", "GEORGIAN", "ARMENIAN", "ETHIOPIC"}  # fmt: skip


def test_every_class_has_documents_without_separators() -> None:
    texts = data.calibration_texts()
    assert tuple(texts) == data.CALIBRATION_CLASSES
    for name, documents in texts.items():
        assert 10_000 < sum(map(len, documents)) < 60_000, name
        for document in documents:
            assert document.strip()
            assert not {"\f", "\r", "\0", "\ufeff", "\ufffd"} & set(document)


def test_the_text_has_every_document_once_and_classes_in_turn() -> None:
    text, texts = data.calibration_text(), data.calibration_texts()
    assert text == data.calibration_text()
    where = {name: [text.index(document) for document in documents] for name, documents in texts.items()}
    everything = [document for documents in texts.values() for document in documents]
    assert len(text) == sum(map(len, everything)) + 2 * (len(everything) - 1)
    half = len(text) // 2
    for name, starts in where.items():
        assert starts == sorted(starts), name
        assert 0 < sum(start < half for start in starts) < len(starts), name
    assert len(text.encode()) < 300_000


def test_the_other_scripts_are_there() -> None:
    found = {unicodedata.name(c, "?").split("-")[0].split()[0] for c in data.calibration_text() if c.isalpha()}
    assert found >= SCRIPTS
