"""Texts and names from elsewhere stay text, nothing is asked of another host, and the page stays quick."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.page import Page, PageServer, until
from tests.support.pdf_files import pdf_of

SCRIPT = "<script>window.ran = 1</script>"
HANDLER = '<img src=x onerror="window.ran = 1">'
HOSTILE = f"""{SCRIPT}

{HANDLER} and <b onclick="window.ran=1">b</b> <svg onload="window.ran=1"></svg>

[click](javascript:window.ran=1) [data](data:text/html,{SCRIPT}) [vb](vbscript:x) [case](JaVaScRiPt:window.ran=1)
<javascript:window.ran=1> ![picture](https://elsewhere.invalid/p.png) ![b](javascript:x "t") [ok](https://elsewhere.invalid/page)

<iframe src="https://elsewhere.invalid"></iframe>

<style>body {{ display: none }}</style>

| {HANDLER} | b |
| --- | --- |
| {SCRIPT} | `{HANDLER}` |

[ref]: javascript:window.ran=1
[ref] &lt;script&gt;window.ran=1&lt;/script&gt;

```html"><script>window.ran=1</script>
{SCRIPT}
```
"""


def _drawn(page: Page, text: str) -> None:
    """Draw a text as a reply, by the page's own module."""
    page.driver.execute_async_script(
        """const done = arguments[arguments.length - 1];
        Promise.all([import("/static/js/markdown.js"), import("/static/js/view.js")]).then(([{ Markdown }, { h, render }]) => {
            // Beside the page: what the page draws anew does not take it away.
            const box = document.createElement("div"); box.id = "drawn"; document.body.prepend(box);
            Object.assign(box.style, { position: "fixed", inset: "0", overflow: "auto", zIndex: "9" });
            render(h(Markdown, { text: arguments[0] }), box); setTimeout(done, 300); }, (e) => done(String(e)))""",
        text,
    )


def test_hostile_markdown_is_shown_as_text(page: Page) -> None:
    _drawn(page, HOSTILE)
    shown = page.one("#drawn").text
    assert SCRIPT in shown and HANDLER in shown
    inside = page.driver.execute_script(
        """const all = [...document.querySelectorAll("#drawn *")];
        return { tags: [...new Set(all.map((e) => e.tagName))], ran: window.ran ?? null,
            attributes: [...new Set(all.flatMap((e) => e.getAttributeNames()))],
            links: [...document.querySelectorAll("#drawn a")].map((a) => [a.href, a.rel, a.target]) }"""
    )
    assert inside["ran"] is None
    assert not {"SCRIPT", "IMG", "IFRAME", "STYLE", "B"} & set(inside["tags"])
    assert not any(name.startswith("on") for name in inside["attributes"])
    assert {link[0].split(":")[0] for link in inside["links"]} == {"https"}
    assert all(link[1:] == ["noopener noreferrer", "_blank"] for link in inside["links"])


def test_names_and_texts_of_documents_and_conversations_stay_text(
    page: Page, server: PageServer, tmp_path: Path
) -> None:
    name = "<img src=x onerror=window.ran=1>.pdf"
    path = tmp_path / name
    path.write_bytes(pdf_of([[(f"{SCRIPT} Leila Haddad counted 42 herons.", 72.0, 700.0)]]))
    page.drop(path)
    page.ready(name)
    page.click(".row-main", name)
    page.chord("KeyO", "o")
    page.one(".sheet-text p", SCRIPT)
    page.ask(f"{HANDLER} How many herons?")
    assert page.questions == [f"{HANDLER} How many herons?"]
    page.click(".head button[aria-haspopup]")
    page.click("[role=menuitem]", "Rename")
    page.fill("dialog input", SCRIPT)
    page.click("dialog .primary")
    until(lambda: page.one(".head .title").text == SCRIPT, "the new title")
    page.chord("KeyT", "t")
    page.fill("dialog input", HANDLER, "Name of column 1")
    page.click("dialog .primary")
    page.one(".extracted th", HANDLER)
    assert page.driver.execute_script("return window.ran ?? null") is None


def test_a_path_as_a_name_is_only_a_name(page: Page, server: PageServer) -> None:
    with server.client() as client:
        form = {"file": ("../../../etc/passwd.txt", b"Leila Haddad counted 42 herons.")}
        answer = client.post("/v1/library/documents", files=form, headers={"X-Jamba": "1"})
    assert answer.status_code == 201
    assert not (server.home.parent / "etc").exists()
    page.open()
    page.one(".row-name", "passwd.txt")


@pytest.mark.parametrize("header", ["Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy"])
def test_the_document_comes_with_a_strict_policy(server: PageServer, header: str) -> None:
    with server.client() as client:
        value = client.get("/", headers={"Accept": "text/html"}).headers[header]
    assert "unsafe" not in value
    if header == "Content-Security-Policy":
        for part in ("default-src 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"):
            assert part in value


def test_another_page_can_neither_frame_this_one_nor_write_to_it(page: Page, server: PageServer) -> None:
    other = server.url.replace("127.0.0.1", "localhost")
    page.driver.get("about:blank")
    tried = page.driver.execute_async_script(
        """const done = arguments[arguments.length - 1];
        const frame = document.createElement("iframe"); frame.src = arguments[0]; document.body.append(frame);
        frame.onload = async () => {
            const sent = await fetch(arguments[0] + "/v1/library/sessions", {method: "POST", mode: "no-cors",
                headers: {"Content-Type": "text/plain"}, body: "{}"}).then((r) => r.type, String);
            done([sent, frame.contentDocument === null]); }""",
        other,
    )
    assert tried[1]  # an error page of the browser, which nobody can look into
    with server.client() as client:
        assert client.get("/v1/library/sessions", headers={"Origin": "https://elsewhere.invalid"}).status_code == 403
        assert client.get("/v1/library/sessions", headers={"Host": "elsewhere.invalid"}).status_code in (403, 421)
        before = client.get("/v1/library/sessions").json()["sessions"]
        assert (
            client.post("/v1/library/sessions", content="{}", headers={"Content-Type": "text/plain"}).status_code >= 400
        )
        assert client.get("/v1/library/sessions").json()["sessions"] == before
    page.errors()


def test_the_first_view_is_light_quick_and_asks_no_other_host(page: Page) -> None:
    page.driver.get_log("performance")
    page.open()
    script = """return ["resource", "navigation"].flatMap((kind) => performance.getEntriesByType(kind))
        .map((e) => e.encodedBodySize)"""
    total = sum(page.driver.execute_script(script))
    assert 20_000 < total < 150_000
    asked = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    hosts = {
        message["params"]["request"]["url"].split("/")[2]
        for message in asked
        if message["method"] == "Network.requestWillBeSent" and "://" in message["params"]["request"]["url"]
    }
    assert hosts == {page.url.removeprefix("http://")}


LONG = "\n\n".join(
    f"## Part {n}\n\nThe wind was *cold* on day {n}, and **{n} herons** were counted at `lake{n}`.\n\n- one\n- two\n\n"
    "| a | b |\n| --- | --- |\n| 1 | 2 |"
    for n in range(400)
)


def test_a_long_streamed_reply_is_drawn_block_by_block(page: Page) -> None:
    # The work of one piece must not grow with what stands before it: blocks that are settled keep their elements.
    kept = page.driver.execute_async_script(
        """const done = arguments[arguments.length - 1], text = arguments[0];
        const modules = [import("/static/js/markdown.js"), import("/static/js/view.js")];
        Promise.all(modules).then(async ([{ Markdown }, { h, render }]) => {
            const box = document.createElement("div"); document.querySelector(".scroll").prepend(box);
            render(h(Markdown, { text: text.slice(0, 30000), live: true }), box);
            const before = [...box.firstChild.children];
            before.forEach((element, i) => { element.seen = i; });
            let changed = 0;
            const watch = new MutationObserver((list) => list.forEach((m) => {
                const top = [...box.firstChild.children].find((e) => e.contains(m.target));
                if (top && top.seen < before.length - 3) changed += 1; }));
            watch.observe(box, {subtree: true, childList: true, characterData: true});
            for (let at = 30000; at < 34000; at += 40) render(h(Markdown, { text: text.slice(0, at), live: true }), box);
            await new Promise((go) => setTimeout(go));
            done([changed, before.length, box.firstChild.children.length, before.every((e) => e.isConnected)]);
        }, (e) => done(String(e)))""",
        LONG,
    )
    changed, before, after, connected = kept
    assert changed == 0 and connected and after > before > 100
