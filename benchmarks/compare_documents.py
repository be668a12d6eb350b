"""Compares the text that documents are read as with that of pandoc, poppler (pdftotext), LibreOffice and w3m.

    python -m benchmarks.compare_documents FOLDER [-o TABLE.md] [--json FIGURES.json] [--differences FOLDER]

Every file of FOLDER of a known kind is read as ``jamba ask`` reads it and by the programs that know its kind. A file
NAME.truth.txt beside NAME is one more text to compare with: what the document says, in order.

Words are runs of letters and digits after NFKC and without regard to case; of Chinese, Japanese and Thai each character is one.
Hyphens within words and at ends of lines are dropped, so that a divided word equals the whole one. Two readers rarely
agree on everything (list numbers, alternative texts, notes), so a word counts as *missing* only if every other program has it
more often, and as *added* only if every other one has it less often. Where headers that repeat were kept once, and the file
says so, their further copies are not missing.

Order: the words of both texts are aligned (runs of three words that both have, the longest chain of them that rises in both
texts, and between its members the longest common blocks). A line is in order if 80% of its words that the other text has at
all are aligned. The best of the other programs counts.
"""

from __future__ import annotations

import argparse
import email.message
import email.policy
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

from jambacli.documents.extract.sandbox import Sandbox
from jambacli.documents.load import read_file
from jambacli.errors import JambaError

#: The bounds: words missing or added, and lines in order.
WORDS, ORDER = 0.005, 0.95
_SECONDS = 180
_HYPHENS = "\u00ad\u2010\u2011\u2212\ufffe-"
# A hyphen within a word, also at the end of a line.
_DIVIDED = re.compile(rf"(?<=\w)[{_HYPHENS}]\s*\n?\s*(?=\w)")
_WORD = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\W_\u2e80-\u9fff\uf900-\ufaff\u0e00-\u0e7f]+")
# Trigrams that occur more often than this anchor nothing; gaps longer than this are not aligned word by word.
_COMMON, _GAP = 30, 2_000

Reader = Callable[[Path], str]


def words(text: str) -> list[str]:
    """The words of a text, as compared."""
    text = re.sub(r"\^\(([^()]*)\)|\^(?=\w)", r"\1", text.replace("\f", "\n"))  # raised text
    text = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(_DIVIDED.sub("", text))


def program(*command: str) -> str:
    """What a program writes to its standard output. Raises OSError or CalledProcessError."""
    done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True)
    return done.stdout.decode("utf-8", "replace")


def plain(markup: str) -> str:
    """The text of pandoc's HTML, a block per line."""
    markup = re.sub(r"(?s)<(script|style|head)\b.*?</\1>", " ", markup)
    markup = re.sub(r'(?s)<a [^>]*class="footnote-(ref|back)".*?</a>', " ", markup)  # numbers of pandoc's own
    markup = re.sub(r"(?i)</?(p|div|li|tr|td|th|h\d|br|pre|dt|dd|table|section|figcaption)\b[^>]*>", "\n", markup)
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def pandoc(path: Path) -> str:
    kind = {".htm": "html", ".xhtml": "html"}.get(path.suffix, path.suffix[1:])
    text = plain(program("pandoc", "-f", kind, "-t", "html", "--wrap=none", "--mathml", str(path)))
    return f"{_title(path)}\n{text}" if kind == "html" else text


def _title(path: Path) -> str:
    """A web page's title, which stands on the browser's tab."""
    found = re.search(r"(?is)<title[^>]*>(.*?)</title>", path.read_text("utf-8", "replace"))
    return html.unescape(found[1]) if found else ""


def pdftotext(path: Path) -> str:
    return program("pdftotext", "-enc", "UTF-8", str(path), "-")


def pdftotext_layout(path: Path) -> str:
    return program("pdftotext", "-layout", "-enc", "UTF-8", str(path), "-")


def pdftotext_raw(path: Path) -> str:
    return program("pdftotext", "-raw", "-enc", "UTF-8", str(path), "-")


def w3m(path: Path) -> str:
    return program("w3m", "-dump", "-cols", "2000", "-T", "text/html", "-O", "UTF-8", str(path))


def libreoffice(path: Path, to: str = "txt:Text (encoded):UTF8") -> str:
    with tempfile.TemporaryDirectory() as folder:
        profile = f"-env:UserInstallation=file://{tempfile.gettempdir()}/compare_documents_profile"
        program("soffice", profile, "--headless", "--convert-to", to, "--outdir", folder, str(path))
        made = sorted(Path(folder).iterdir())
        if not made:
            raise OSError(f"{path.name}: LibreOffice wrote nothing")
        if made[0].suffix == ".pdf":
            return pdftotext(made[0])
        return "\n".join(file.read_text("utf-8-sig", "replace") for file in made)


def libreoffice_sheets(path: Path) -> str:
    return libreoffice(path, "csv:Text - txt - csv (StarCalc):9,34,76,1,,0,false,true,false,false,false,-1")


def libreoffice_pdf(path: Path) -> str:
    return libreoffice(path, "pdf")


def python_email(path: Path) -> str:
    """Fields, names of parts, and every plain text."""
    return _email(path, "text/plain")


def python_email_html(path: Path) -> str:
    """Fields, names of parts, and every HTML text, by pandoc."""
    return _email(path, "text/html")


def _email(path: Path, kind: str) -> str:
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    lines = [f"{k}: {message[k]}" for k in ("From", "Reply-To", "To", "Cc", "Subject", "Date") if message[k]]
    for part in message.walk():
        assert isinstance(part, email.message.EmailMessage)
        lines.append(part.get_filename() or "")
        if part.get_content_type() == kind == "text/html":
            with tempfile.NamedTemporaryFile("w", suffix=".html") as file:
                file.write(part.get_content())
                file.flush()
                lines.append(pandoc(Path(file.name)))
        elif part.get_content_type() == kind:
            lines.append(part.get_content())
    return "\n".join(lines)


def notebook_json(path: Path) -> str:
    """The sources and the text outputs of a notebook's cells."""
    lines: list[str] = []
    content = json.loads(path.read_text("utf-8"))
    for cell in content.get("cells") or [cell for sheet in content["worksheets"] for cell in sheet["cells"]]:
        lines += [cell.get("source", cell.get("input", ""))]
        for output in cell.get("outputs", ()):
            data = output.get("data", output)
            lines += [output.get("text", data.get("text/plain", data.get("text", ""))), *output.get("traceback", ())]
    return "\n".join("".join(line) for line in lines)


#: The programs that know a kind.
READERS: dict[str, tuple[Reader, ...]] = {
    ".pdf": (pdftotext, pdftotext_layout, pdftotext_raw),
    ".docx": (pandoc, libreoffice, libreoffice_pdf),
    ".odt": (pandoc, libreoffice, libreoffice_pdf),
    ".rtf": (pandoc, libreoffice, libreoffice_pdf),
    ".epub": (pandoc,),
    ".html": (pandoc, w3m),
    ".ipynb": (pandoc, notebook_json),
    ".eml": (python_email, python_email_html),
    ".xlsx": (libreoffice_sheets,),
    ".ods": (libreoffice_sheets,),
    ".pptx": (libreoffice_pdf,),
    ".odp": (libreoffice_pdf,),
}


@dataclass
class Other:
    """Another program's text."""

    name: str
    words: list[str]
    #: Words of repeated headers and footers beyond the first copy of each.
    repeated: Counter[str]
    order: float = 1.0
    out_of_order: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """One document. ``error``: why it was not read."""

    name: str
    words: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    added: Counter[str] = field(default_factory=Counter)
    others: list[Other] = field(default_factory=list)
    error: str = ""

    @property
    def order(self) -> float:
        """The share of lines in order, by the program that agrees best."""
        return max((other.order for other in self.others), default=0.0)

    @property
    def share(self) -> tuple[float, float]:
        """The shares of words missing and added."""
        base = max(self.words, 1)
        return self.missing.total() / base, self.added.total() / base

    @property
    def within(self) -> bool:
        """Whether the document is within the bounds."""
        return not self.error and max(self.share) <= WORDS and self.order >= ORDER


def compare(path: Path, sandbox: Sandbox) -> Comparison:
    """One document, read by this program and by the others that know its kind."""
    result = Comparison(path.name)
    try:
        document = read_file(path, sandbox)
    except JambaError as error:
        result.error = str(error)
        return result
    once = any("kept once" in remark for remark in document.remarks)
    readers: list[tuple[str, Reader]] = [(reader.__name__, reader) for reader in READERS.get(path.suffix.lower(), ())]
    truth = path.with_name(path.name + ".truth.txt")
    if truth.exists():
        readers = [("truth", lambda _: truth.read_text("utf-8"))]
    for name, reader in readers:
        try:
            text = reader(path)
        except (OSError, ValueError, LookupError, subprocess.SubprocessError):
            continue
        result.others.append(Other(name, words(text), _copies(text) if once else Counter()))
    ours = document.text
    have = Counter(words(ours))
    result.words = have.total()
    if not result.others:
        result.error = "no other program read it"
        return result
    counts = [Counter(other.words) for other in result.others]
    least = Counter(counts[0] - result.others[0].repeated)
    most = Counter(counts[0])
    for other, count in zip(result.others[1:], counts[1:], strict=True):
        least &= count - other.repeated
        most |= count
    result.missing, result.added = least - have, have - most
    for other in result.others:
        other.order, other.out_of_order = _order(ours, other.words)
    return result


def _copies(text: str) -> Counter[str]:
    """The words of lines at the top and bottom of three pages or more, each but the first time. Numbers may differ."""
    edges = []
    for page in text.split("\f"):
        lines = [line.strip() for line in page.split("\n") if line.strip()]
        edges.append([*lines[:5], *lines[5:][-5:]])
    keys = Counter(key for lines in edges for key in {_key(line) for line in lines})
    seen: set[str] = set()
    copies: Counter[str] = Counter()
    for line in (line for lines in edges for line in lines):
        key = _key(line)
        if keys[key] >= 3:
            if key in seen:
                copies.update(words(line))
            seen.add(key)
    return copies


def _key(line: str) -> str:
    return re.sub(r"\d+|\b[ivxlc]+\b", "#", " ".join(line.split()))


def _order(ours: str, other: Sequence[str]) -> tuple[float, list[str]]:
    """The share of lines whose words stand in order in the other text, and the other lines."""
    lines: list[tuple[str, int, int]] = []
    mine: list[str] = []
    for line in _DIVIDED.sub("", unicodedata.normalize("NFKC", ours)).split("\n"):
        some = words(line)
        if some:
            lines.append((line, len(mine), len(mine) + len(some)))
            mine += some
    aligned = _aligned(mine, other)
    known = set(other)
    wrong = []
    for line, start, end in lines:
        there = [i for i in range(start, end) if mine[i] in known]
        if there and sum(aligned[i] for i in there) < 0.8 * len(there):
            wrong.append(line)
    return 1 - len(wrong) / max(len(lines), 1), wrong


def _aligned(a: Sequence[str], b: Sequence[str]) -> list[bool]:
    """Which words of ``a`` are aligned with one of ``b``."""
    found = [False] * len(a)
    places: dict[tuple[str, ...], list[int]] = {}
    for j in range(len(b) - 2):
        places.setdefault(tuple(b[j : j + 3]), []).append(j)
    chain = _rising([places.get(tuple(a[i : i + 3]), ()) for i in range(len(a) - 2)])
    at = (0, 0)
    for i, j in [*chain, (len(a), len(b))]:
        if i > at[0] and j > at[1] and i - at[0] < _GAP and j - at[1] < _GAP:
            matcher = SequenceMatcher(None, a[at[0] : i], b[at[1] : j], autojunk=False)
            for block in matcher.get_matching_blocks():
                for k in range(block.size):
                    found[at[0] + block.a + k] = True
        if i < len(a):
            for k in range(3):
                found[i + k] = True
            at = max(at[0], i + 3), max(at[1], j + 3)
    return found


def _rising(candidates: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The longest chain (i, candidate of i) that rises in both."""
    ends: list[int] = []
    tails: list[int] = []
    nodes: list[tuple[int, int, int]] = []
    for i, some in enumerate(candidates):
        if len(some) > _COMMON:
            continue
        for j in reversed(some):
            k = bisect_left(ends, j)
            nodes.append((i, j, tails[k - 1] if k else -1))
            if k == len(ends):
                ends.append(j)
                tails.append(len(nodes) - 1)
            else:
                ends[k], tails[k] = j, len(nodes) - 1
    chain = []
    at = tails[-1] if tails else -1
    while at >= 0:
        i, j, at = nodes[at]
        chain.append((i, j))
    return chain[::-1]


def table(results: Sequence[Comparison], about: dict[str, str]) -> str:
    """The results as Markdown. ``about``: a remark for a name."""
    rows = [
        "| document | made by | words | missing | added | in order | compared with |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for one in results:
        made = about.get(one.name, "")
        if one.error:
            rows.append(f"| {one.name} | {made} | | | | | {one.error} |")
            continue
        missing, added = one.share
        best = ", ".join(other.name.replace("_", " ") for other in one.others)
        mark = "" if one.within else " **(1)**"
        rows.append(
            f"| {one.name}{mark} | {made} | {one.words:,} | {100 * missing:.2f}% | {100 * added:.2f}% "
            f"| {100 * one.order:.1f}% | {best} |"
        )
    good = sum(one.within for one in results)
    total = sum(one.words for one in results)
    missing, added = (sum(getattr(one, kind).total() for one in results) for kind in ("missing", "added"))
    rows.append("")
    rows.append(
        f"{good} of {len(results)} within the bounds; of all {total:,} words {100 * missing / max(total, 1):.3f}% missing, "
        f"{100 * added / max(total, 1):.3f}% added."
    )
    return "\n".join(rows) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Compare and print the table."""
    parser = argparse.ArgumentParser(prog="compare_documents", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="only these files")
    parser.add_argument("--output", "-o", type=Path, help="write the table there")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--differences", type=Path, help="write what differs there, a file per document")
    options = parser.parse_args(arguments)
    notes = options.folder / "about.json"
    about = json.loads(notes.read_text("utf-8")) if notes.exists() else {}
    paths = [p for p in sorted(options.folder.iterdir()) if p.suffix.lower() in READERS]
    results = []
    with Sandbox() as sandbox:
        for path in paths:
            if not options.names or path.name in options.names:
                results.append(compare(path, sandbox))
                print(path.name, file=sys.stderr)
                if options.differences:
                    _write_differences(options.differences, results[-1])
    shutil.rmtree(Path(tempfile.gettempdir()) / "compare_documents_profile", ignore_errors=True)
    text = table(results, about)
    print(text)
    if options.output:
        options.output.write_text(text, "utf-8")
    if options.json:
        figures = [
            {"name": r.name, "words": r.words, "missing": dict(r.missing), "added": dict(r.added), "error": r.error,
             "order": {other.name: other.order for other in r.others}}
            for r in results
        ]  # fmt: skip
        options.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False), "utf-8")


def _write_differences(folder: Path, result: Comparison) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{result.name}: {result.error}", f"missing: {dict(result.missing)}", f"added: {dict(result.added)}"]
    for other in result.others:
        lines += [f"== {other.name}: {other.order:.3f}", *other.out_of_order]
    (folder / f"{result.name}.txt").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
