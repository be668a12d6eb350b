"""A contract assistant: several documents in, the same facts of each out as JSON, with the page they stand on.

    python examples/contract_assistant.py --model jamba:3b lease.pdf supply.docx

Every document is read once; a second question about it, now or tomorrow, reads only the question. Without arguments it
reads two contracts of its own with the demo model, which is too small to understand them: the JSON is valid all the same.
"""

import json
import sys
import tempfile
from pathlib import Path

from jambacli import Jamba
from jambacli.documents.load import read_documents
from jambacli.errors import JambaError

SCHEMA = {
    "type": "object",
    "properties": {
        "parties": {"type": "array", "items": {"type": "string", "maxLength": 60}, "minItems": 1, "maxItems": 4},
        "notice_period_days": {"type": ["integer", "null"], "minimum": 0, "maximum": 3650},
        "page": {"type": "integer", "minimum": 1, "maximum": 2000},
        "risk": {"enum": ["low", "medium", "high"]},
    },
    "required": ["parties", "notice_period_days", "page", "risk"],
    "additionalProperties": False,
}
SAMPLES = {
    "lease.txt": "Lease between Mira Okafor and the Harbour Trust.\nEither may end it with 90 days' notice.\n",
    "supply.txt": "Supply contract of Lake Mills and Tomas Brandt.\nNotice is thirty days. Penalty: 3,100 euros a day.\n",
}


def main() -> None:
    arguments = sys.argv[1:]
    name = arguments.pop(arguments.index("--model") + 1) if "--model" in arguments else None
    files = [a for a in arguments if a != "--model"]
    with tempfile.TemporaryDirectory() as folder:
        if not files:
            for title, text in SAMPLES.items():
                (Path(folder) / title).write_text(text, encoding="utf-8")
            files = [folder]
        documents = read_documents(files, problem=lambda line: print(line, file=sys.stderr))
    model = Jamba.load(name)
    for document in documents:
        parts = [{"title": document.title(part), "text": part.text} for part in document.parts]
        question = "Who are the parties, what is the notice period, on which page does it stand, how risky is it?"
        with model.session() as session:
            said = "".join(session.send(question, documents=parts, schema=SCHEMA, max_tokens=300, temperature=0))
            print(json.dumps({"file": Path(document.name).name, **json.loads(said)}, ensure_ascii=False))
            print(f"[{session.stats.prefilled_tokens} tokens read]", file=sys.stderr)


if __name__ == "__main__":
    try:
        main()
    except JambaError as error:
        sys.exit(f"error: {error}")
