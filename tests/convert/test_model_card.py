"""A checkpoint's general.* metadata: names, licence, base models, sampling defaults and chat templates in the GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jambacli.convert.chat_templates import chat_templates, template_metadata
from jambacli.convert.model_card import general_metadata
from jambacli.convert.to_gguf import convert
from jambacli.errors import JambaError
from jambacli.gguf.reader import GGUFFile
from tests.support.checkpoints import CHAT_TEMPLATE, make_checkpoint


def general(folder: Path, name: str | None = None, **config: Any) -> dict[str, Any]:
    return {key: value for key, value, _ in general_metadata(folder, config, name=name, size_label="3B")}


CARD = """---
license: other
license_name: jamba-open-model-license
license_link: https://www.ai21.com/jamba-open-model-license/
base_model:
- ai21labs/AI21-Jamba-Mini-1.7
- some local thing
tags: [text-generation, jamba]
language: [en, he]
model_name: My Fine Jamba
---

# A model
"""


def test_the_card_fills_general_keys(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    assert general(tmp_path) == {
        "general.type": "model",
        "general.name": "My Fine Jamba",
        "general.size_label": "3B",
        "general.license": "other",
        "general.license.name": "jamba-open-model-license",
        "general.license.link": "https://www.ai21.com/jamba-open-model-license/",
        "general.base_model.count": 2,
        "general.base_model.0.name": "AI21-Jamba-Mini-1.7",
        "general.base_model.0.organization": "ai21labs",
        "general.base_model.0.repo_url": "https://huggingface.co/ai21labs/AI21-Jamba-Mini-1.7",
        "general.base_model.1.name": "some local thing",
        "general.tags": ["text-generation", "jamba"],
        "general.languages": ["en", "he"],
    }


def test_the_name_is_the_users_then_the_cards_then_the_repositorys_then_the_directorys(tmp_path: Path) -> None:
    folder = tmp_path / "models--ai21labs--AI21-Jamba2-3B" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    meta = general(folder)
    assert meta["general.name"] == "AI21-Jamba2-3B" and meta["general.organization"] == "ai21labs"
    assert meta["general.source.repo_url"] == "https://huggingface.co/ai21labs/AI21-Jamba2-3B"
    (folder / "README.md").write_text(CARD)
    assert general(folder)["general.name"] == "My Fine Jamba"
    assert general(folder, "Mine")["general.name"] == "Mine"
    plain = tmp_path / "my-jamba"
    plain.mkdir()
    assert general(plain)["general.name"] == "my-jamba"
    assert general(plain, _name_or_path="ai21labs/Jamba-v0.1")["general.name"] == "Jamba-v0.1"
    assert general(plain, _name_or_path="/home/x/checkpoint")["general.name"] == "my-jamba"


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# No front matter",
        "---\nlicense: mit",
        "---\n- a\n- b\n---\n",
        "---\n5\n---\n",
        "---\nlicense: [1, {}]\n---\n",
    ],
)
def test_cards_without_a_licence(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    assert not general(tmp_path).get("general.license")


@pytest.mark.parametrize(
    "front",
    [
        "a: [",
        "\tb: 1",
        "a: &x [1]\nb: *x",
        "&a a: &b {<<: *a}",
        "!!python/object/apply:os.system [id]",
        "? [a]\n: b",
        "[" * 9999,
    ],
    ids=range(7),
)
def test_a_damaged_or_hostile_card_costs_a_warning(
    tmp_path: Path, front: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{front}\n---\n")
    assert "general.license" not in general(tmp_path)
    assert "front matter is unreadable" in caplog.text


def test_sampling_defaults_unless_sampling_is_off(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    settings = {"temperature": 0.4, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
    path.write_text(json.dumps(settings))
    assert {k: v for k, v in general(tmp_path).items() if "sampling" in k} == {
        "general.sampling.temp": 0.4,
        "general.sampling.top_p": 0.9,
        "general.sampling.top_k": 40,
        "general.sampling.min_p": 0.05,
        "general.sampling.penalty_repeat": 1.1,
    }
    for off in ({"do_sample": False}, {"temperature": "hot"}, {"temperature": -1}, {"top_p": 7}, {"top_k": 1.5}):
        path.write_text(json.dumps(({} if "do_sample" not in off else settings) | off))
        assert not [k for k in general(tmp_path) if "sampling" in k]


def test_a_template_of_its_own_file_wins(tmp_path: Path) -> None:
    assert chat_templates(tmp_path) == {}
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "config"}')
    assert chat_templates(tmp_path) == {"default": "config"}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert chat_templates(tmp_path) == {"default": "json"}
    (tmp_path / "chat_template.jinja").write_text("{{ file }}\n")
    assert chat_templates(tmp_path) == {"default": "{{ file }}\n"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert chat_templates(tmp_path) == {"default": "{{ file }}\n", "tool_use": "tools"}


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool-use", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert template_metadata(chat_templates(tmp_path)) == [
        ("tokenizer.chat_template", "a", "str"),
        ("tokenizer.chat_template.tool_use", "b", "str"),
        ("tokenizer.chat_templates", ["tool_use"], "arr[str]"),
    ]
    for bad in (5, [5], [{"name": "x"}], {"default": "a"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": bad}))
        with pytest.raises(JambaError, match=r"tokenizer_config.json: chat_template is neither"):
            chat_templates(tmp_path)


def test_all_of_it_arrives_in_the_file(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2, attn_layer_offset=0)
    (folder / "README.md").write_text(CARD)
    convert(folder, tmp_path / "m.gguf", name="Ünï 模型")
    with GGUFFile.open(tmp_path / "m.gguf") as file:
        assert file.metadata["general.name"] == "Ünï 模型"
        assert file.metadata["general.languages"] == ["en", "he"]
        assert file.metadata["general.base_model.0.organization"] == "ai21labs"
        assert file.metadata["tokenizer.chat_template"] == CHAT_TEMPLATE
        assert next(iter(file.metadata)) == "general.architecture"


def test_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2, attn_layer_offset=0)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')
    with pytest.raises(JambaError, match=r"tokenizer.chat_template is not valid Unicode"):
        convert(folder, tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
