"""Ask questions of a text file; the second run, in any process, reads only the question.

    python examples/ask_a_text.py model.gguf contract.txt "What is the notice period?"

Without arguments it uses the demonstration model and its own source as the text.
"""

import sys
from pathlib import Path

from jambacli import Jamba


def main() -> None:
    arguments = sys.argv[1:]
    model = Jamba.load(arguments[0] if arguments else None)
    path = Path(arguments[1] if len(arguments) > 1 else __file__)
    question = arguments[2] if len(arguments) > 2 else "What does it do?"
    documents = [{"title": path.name, "text": path.read_text(encoding="utf-8")}]
    with model.session() as session:
        for piece in session.send(question, documents=documents, max_tokens=200, temperature=0):
            print(piece, end="", flush=True)
        s = session.stats
        print(f"\n[{s.reused_tokens} tokens reused, {s.prefilled_tokens} read, {s.generated_tokens} written]")


if __name__ == "__main__":
    main()
