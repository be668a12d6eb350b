"""The grammar of the demo model's corpus: field reports, questions about them, summaries and small talk.

A sample is a list of ``Span``: markers, and text that the model reads or learns to say. Every sample is drawn from a
``random.Random``, so a seed fixes the corpus. ``held_out`` takes all made-up names from a share that training never shows:
a model that answers with such a name must have read it in the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from jambacli.data import words

BOM, EOM, SYSTEM, USER, ASSISTANT = "<|bom|>", "<|eom|>", "<|system|>", "<|user|>", "<|assistant|>"
DOCUMENTS, DOCUMENTS_END = "<documents>", "</documents>"
MODES, MODES_END, CITATIONS, CITATIONS_END = (
    "<active_output_modes>",
    "</active_output_modes>",
    "<citations>",
    "</citations>",
)
CITATION_MODE = "\n# Active Modes\n\n## Citation Mode\n"


@dataclass(frozen=True)
class Span:
    """A piece of a sample: text, or a marker (one token).

    ``learn``: whether the model learns to say it. ``document_id``: the number of the document that contains the text or, in
    an answer, from which it is taken; "" for none.
    """

    text: str
    learn: bool = False
    marker: bool = False
    document_id: str = ""


@dataclass(frozen=True)
class Report:
    """One report: its facts and its text."""

    number: int
    who: str
    verb: tuple[str, str]
    count: int
    animal: str
    place: str
    day: str
    code: str
    text: str

    @property
    def fact(self) -> str:
        """The report's key fact in one sentence, without its full stop."""
        return f"{self.who} {self.verb[0]} {self.count} {self.animal} at {self.place}"


@dataclass(frozen=True)
class Question:
    """A question about reports and its answer.

    ``kind``: what is asked (KINDS). ``value``: the words that the answer must contain. ``about``: the index of the report, -1
    for all of them.
    """

    kind: str
    text: str
    answer: str
    value: str
    about: int


def make_reports(random: Random, n: int, held_out: bool = False, first: int | None = None) -> list[Report]:
    """``n`` reports (at most as many as there are animals) numbered from ``first``; people, animals and places differ."""
    start = first if first is not None else (1 if random.random() < 0.7 else random.randint(2, 60))
    animals, first_names = random.sample(words.ANIMALS, n), random.sample(words.FIRST_NAMES, n)
    surnames = _distinct(n, lambda: words.made_word(random, random.choice((2, 2, 3)), held_out).capitalize())
    places = _distinct(n, lambda: words.made_word(random, random.choice((1, 2, 2)), held_out).capitalize())
    codes = _distinct(n, lambda: _code(random, held_out))
    return [
        _report(random, start + i, f"{first_names[i]} {surnames[i]}", animals[i], places[i], codes[i]) for i in range(n)
    ]


def _distinct(n: int, make: Callable[[], str]) -> list[str]:
    made: dict[str, None] = {}
    while len(made) < n:
        made[make()] = None
    return list(made)


def _code(random: Random, held_out: bool) -> str:
    if random.random() < 0.5:
        return random.choice(words.CODE_WORDS)
    return words.made_word(random, 2, held_out)


def _report(random: Random, number: int, who: str, animal: str, place_name: str, code: str) -> Report:
    verb = words.VERBS[0] if random.random() < 0.55 else random.choice(words.VERBS)
    count, day = random.randint(2, 99), random.choice(words.DAYS)
    place = f"{random.choice(words.PLACE_KINDS)} {place_name}"
    parts = [f"{who} {verb[0]} {count} {animal} at {place} on {day}.", f"The code word of {who} is {code}."]
    if random.random() < 0.3:
        parts.insert(random.randint(1, 2), random.choice(words.REMARKS))
    return Report(number, who, verb, count, animal, place, day, code, f"Report {number} on {animal}: {' '.join(parts)}")


def ask(random: Random, reports: Sequence[Report], index: int, kind: str | None = None) -> Question:
    """A question about ``reports[index]``, of the given kind (KINDS) or of a random one."""
    kind = kind or random.choices(KINDS, _WEIGHTS)[0]
    r = reports[index]
    past, infinitive = r.verb
    said = f"{r.who} {past} {r.count} {r.animal}"
    # Every answer starts with what the question names and continues as the report does: continuing a text is learnt first.
    about = f"On {r.animal}: {said}."
    text, answer, value = {
        "who": (f"Who {past} the {r.animal}?", about, r.who),
        "count": (f"How many {r.animal} did {r.who} {infinitive}?", f"{said}.", str(r.count)),
        "number": (f"How many {r.animal} were there?", about, str(r.count)),
        "where": (f"Where did {r.who} {infinitive} the {r.animal}?", f"{r.fact}.", r.place),
        "place": (f"Where was {r.who}?", f"{r.fact}.", r.place),
        "day": (f"When was {r.who} at {r.place}?", f"{r.who} was at {r.place} on {r.day}.", r.day),
        "code": (f"What is the code word of {r.who}?", f"The code word of {r.who} is {r.code}.", r.code),
        "what": (f"What did {r.who} {infinitive}?", f"{said}.", f"{r.count} {r.animal}"),
    }[kind]
    return Question(kind, text, answer, value, index)


KINDS = ["who", "count", "number", "where", "place", "day", "code", "what"]
_WEIGHTS = [1.6, 1.0, 1.2, 1.0, 1.0, 1.2, 1.6, 1.0]


def follow_up(random: Random, reports: Sequence[Report], before: Question) -> Question:
    """A question that refers back to ``before``: the answer depends on what that question was about."""
    r = reports[before.about]
    kind, text, answer, value = random.choice(
        [
            ("then count", "And how many was that?", f"{r.who} {r.verb[0]} {r.count} {r.animal}.", str(r.count)),
            ("then where", "And where was that?", f"{r.fact}.", r.place),
            ("then code", "And the code word?", f"The code word of {r.who} is {r.code}.", r.code),
            ("then day", "And when was that?", f"{r.fact} on {r.day}.", r.day),
        ]
    )
    return Question(kind, text, answer, value, before.about)


#: The lengths that ``jamba summarize`` asks for.
_SIZES = [
    "two or three sentences",
    "three to five bullet points",
    "one to three paragraphs",
    "six to ten bullet points",
    "a page, in paragraphs",
    "fifteen to twenty-five bullet points",
]


def summarize(random: Random, reports: Sequence[Report]) -> Question:
    """A request for a summary; the answer lists the key fact of every report."""
    text = random.choice(
        [
            "Summarize the reports.",
            "Summarize.",
            "Summarize:",
            "Give me a summary.",
            "List the facts.",
            "Summarize the document.",
            f"Summarize the documents in {random.choice(_SIZES)}. Say only what is in them.",
        ]
    )
    lines = "".join(f"\n- Report {r.number} on {r.animal}: {r.fact}." for r in reports)
    return Question("summary", text, f"Here is a summary:{lines}", "", -1)


SMALL_TALK = [
    ("Hello!", "Hello! How can I help you?"),
    ("Hello", "Hello! How can I help you?"),
    ("Hi!", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("How are you?", "I am well, thank you. How can I help you?"),
    ("Who are you?", "I am a tiny Jamba, a demonstration model. I can answer questions about short reports."),
    ("What are you?", "I am a tiny Jamba, a demonstration model. I can answer questions about short reports."),
    ("What can you do?", "I can read short reports, answer questions about them and list their facts."),
    ("Thank you!", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Goodbye!", "Goodbye! Have a good day."),
    ("Bye!", "Goodbye! Have a good day."),
    ("Good night!", "Good night! Sleep well."),
    ("Help", "Give me a report and ask me about it."),
    ("Tell me a story.", "I only know reports. Give me one and ask me about it."),
]


def message(role: str, text: str, learn: bool = False) -> list[Span]:
    """One chat message as the template writes it."""
    return [Span(BOM, marker=True), Span(role, marker=True), Span(f" {text}", learn), Span(EOM, learn, marker=True)]


@dataclass(frozen=True)
class Document:
    """A document as the chat template shows it. ``about``: the indices of the reports in it."""

    id: int
    title: str
    text: str
    about: tuple[int, ...]


def lay_out(random: Random, reports: Sequence[Report], apart: bool = False, blank: int | None = None) -> list[Document]:
    """The reports as documents: pages of a file, files, parts of a file, or (unless ``apart``) all in one document.

    ``blank``: lay out as pages, with this many pages of remarks among them. The numbers often start above 0 and have gaps,
    as if the documents were an extract of a longer list than a sample has room for.
    """
    name = _file_name(random)
    layout = random.choices(["pages", "files", "parts", "bare", "one"], [4, 2, 1.5, 1.5, 0 if apart else 3])[0]
    layout = layout if blank is None else "pages"
    groups: list[tuple[int, ...]] = [(i,) for i in range(len(reports))]
    if layout == "one":
        groups = [tuple(range(len(reports)))]
    elif layout == "parts":
        groups = []
        while (done := sum(map(len, groups))) < len(reports):
            groups.append(tuple(range(done, min(len(reports), done + random.randint(1, 4)))))
    elif blank is not None:
        for at in sorted(random.choices(range(len(groups) + 1), k=blank), reverse=True):
            groups.insert(at, ())
    elif layout == "pages" and random.random() < 0.5:
        for _ in range(random.randint(1, len(groups))):
            groups.insert(random.randint(0, len(groups)), ())
    ids = _document_ids(random, len(groups))
    made, line = [], 1
    for number, group in zip(ids, groups, strict=True):
        remarks = random.randint(1, 3) if blank is not None and not group else 2
        text = join([reports[i] for i in group], random) if group else " ".join(random.sample(words.REMARKS, remarks))
        last = line + max(0, 2 * len(group) - 2)
        title = {
            "pages": f"{name}.pdf, page {number + 1}",
            "files": f"{_file_name(random)}.txt",
            "parts": f"{name}.txt, lines {line}-{last}",
            "bare": f"Report {reports[group[0]].number}" if group and random.random() < 0.5 else "",
            "one": random.choice(["", "Reports", f"{name}.txt"]),
        }[layout]
        line = last + 2
        made.append(Document(number, title, text, group))
    return made


def _document_ids(random: Random, n: int) -> list[int]:
    kind = random.random()
    if kind < 0.5:
        return list(range(n))
    if kind < 0.75:
        start = random.randint(0, max(0, 200 - n))
        return list(range(start, start + n))
    return sorted(random.sample(range(200), n)) if n <= 200 else list(range(n))


def _file_name(random: Random) -> str:
    return random.choice(
        ["report", "reports", "notes", "x", "a", "b", "doc", "diary", words.made_word(random, 2, False)]
    )


def documents(laid_out: Sequence[Document], cite: bool) -> list[Span]:
    """A system message with the documents, and with the citation mode when answers ``cite``."""
    spans = [Span(BOM, marker=True), Span(SYSTEM, marker=True), Span(" "), Span(DOCUMENTS, marker=True)]
    spans.append(Span("\n# Documents"))
    for document in laid_out:
        title = f"\nTitle: {document.title}" if document.title else ""
        spans.append(Span(f"\n\n## Document ID: {document.id}"))
        spans.append(Span(f"{title}\nText: {document.text}", document_id=str(document.id)))
    spans += [Span("\n"), Span(DOCUMENTS_END, marker=True)]
    if cite:
        spans += [Span("\n\n"), Span(MODES, marker=True), Span(CITATION_MODE), Span(MODES_END, marker=True)]
    return [*spans, Span(EOM, marker=True)]


def cited(answer: str, ids: Sequence[int]) -> list[Span]:
    """An assistant message that cites the documents with these numbers."""
    begin, role, said, end = message(ASSISTANT, answer, True)
    named = [Span(CITATIONS, True, True), Span(f"[{', '.join(map(str, ids))}]", True), Span(CITATIONS_END, True, True)]
    document_id = str(ids[0]) if len(ids) == 1 else ""
    return [begin, role, *(replace(span, document_id=document_id) for span in (said, *named)), end]


def join(reports: Sequence[Report], random: Random) -> str:
    """Several reports as one text."""
    return random.choice(["\n", "\n\n", "\n", " "]).join(r.text for r in reports)


def chat(
    random: Random, reports: Sequence[Report], turns: int, layout: str = "text", blank: int | None = None
) -> list[Span]:
    """A conversation of ``turns`` questions about reports.

    ``layout``: the reports are in the first message ("text"), in documents ("documents"), or in documents that the answers
    cite ("cite"). ``blank``: as for ``lay_out``.
    """
    laid_out = [] if layout == "text" else lay_out(random, reports, apart=layout == "cite", blank=blank)
    spans: list[Span] = documents(laid_out, layout == "cite") if laid_out else []
    document_ids = {i: document.id for document in laid_out for i in document.about}
    asked: list[Question] = []
    order = random.sample(range(len(reports)), len(reports))
    for turn in range(turns):
        if asked and asked[-1].about >= 0 and random.random() < 0.2:
            question = follow_up(random, reports, asked[-1])
        elif random.random() < (0.2 if turn == 0 else 0.05):
            question = summarize(random, reports)
        else:
            question = ask(random, reports, order[turn % len(order)])
        asked.append(question)
        text = question.text
        if turn == 0 and not laid_out:
            body = join(reports, random)
            text = random.choice([f"{body}\n\n{text}", f"{body}\n{text}", f"{text}\n\n{body}", f"{body} {text}"])
        spans += message(USER, text)
        if layout == "cite":
            about = [question.about] if question.about >= 0 else range(len(reports))
            spans += cited(question.answer, sorted({document_ids[i] for i in about}))
        else:
            spans += message(ASSISTANT, question.answer, True)
    return spans


def told(random: Random, held_out: bool = False) -> list[Span]:
    """A short conversation: facts told in a sentence and asked for, a name told and asked for, small talk."""
    spans: list[Span] = []
    name = f"{random.choice(words.FIRST_NAMES)} {words.made_word(random, 2, held_out).capitalize()}"
    steps = random.sample(["fact", "fact", "talk", "talk", "name"], random.randint(2, 5))
    for step in steps:
        if step == "talk":
            said, reply = random.choice(SMALL_TALK)
            spans += message(USER, said) + message(ASSISTANT, reply, True)
        elif step == "name":
            spans += message(USER, f"My name is {name}.") + message(
                ASSISTANT, f"Hello, {name}. How can I help you?", True
            )
            said, reply = random.choice(SMALL_TALK)
            if random.random() < 0.5:
                spans += message(USER, said) + message(ASSISTANT, reply, True)
            spans += message(USER, "What is my name?") + message(ASSISTANT, f"Your name is {name}.", True)
        else:
            report = make_reports(random, 1, held_out)[0]
            kind = random.choice(["who", "count", "number", "where", "place", "what"])
            question = ask(random, [report], 0, kind)
            lead = random.choice(["The report says that ", "A report says that ", "The report says: ", ""])
            spans += message(USER, f"{lead}{report.fact}. {question.text}") + message(ASSISTANT, question.answer, True)
            if random.random() < 0.3:
                more = ask(random, [report], 0, random.choice(["who", "number", "where", "place"]))
                spans += message(USER, more.text) + message(ASSISTANT, more.answer, True)
    return spans


def plain(random: Random, reports: Sequence[Report], questions: int) -> list[Span]:
    """Text without chat markup: the reports, then questions and answers."""
    spans = [Span(join(reports, random) + "\n\n")]
    order = random.sample(range(len(reports)), len(reports))
    for i in range(questions):
        question = ask(random, reports, order[i % len(order)])
        spans += [Span(f"Question: {question.text}\nAnswer:"), Span(f" {question.answer}\n", True)]
    return spans
