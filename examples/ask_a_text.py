"""Ask questions of a text file; the second run, in any process, reads only the question.

    python examples/ask_a_text.py model.gguf contract.txt "What is the notice period?"

Without arguments it asks the demo model about two short reports: it knows nothing else.
"""

import sys
from pathlib import Path

from jambacli import Jamba

REPORTS = (
    "Report 1 on herons: Leila Haddad counted 42 herons at Lake Tuz.\n"
    "Report 2 on otters: Tomas Hedlin saw 7 otters at Cape Arda."
)


def main() -> None:
    name, *rest = sys.argv[1:] or ["jamba:tiny"]
    path = Path(rest[0]) if rest else None
    question = rest[1] if len(rest) > 1 else "Who counted the herons?"
    text = path.read_text(encoding="utf-8") if path else REPORTS
    with Jamba.load(name).session() as session:
        documents = [{"title": path.name if path else "reports", "text": text}]
        for piece in session.send(question, documents=documents, max_tokens=200, temperature=0):
            print(piece, end="", flush=True)
        s = session.stats
        print(f"\n[{s.reused_tokens} tokens reused, {s.prefilled_tokens} read, {s.generated_tokens} written]")


if __name__ == "__main__":
    main()
