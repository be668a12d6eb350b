// Markdown as nodes. marked cuts the text into tokens and they become elements here, so no HTML is ever parsed: tags in a text
// are shown as text. While a reply is streamed only its last block is read and drawn again.
import { lexer } from "../vendor/marked.js";
import { Component, h, useLayoutEffect, useRef, useState } from "./view.js";
import { unitsAt } from "./format.js";

// A mark's place within the text while it is cut into tokens. Private characters, which texts are cleared of first.
const OPEN = "\ue000";
const CLOSE = "\ue001";
const PLACES = /\ue000(\d+)\ue001/;

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", mdash: "\u2014", ndash: "\u2013", hellip: "\u2026" };

function decoded(text) {
  if (!text.includes("&")) return text;
  return text.replace(/&(#x[0-9a-f]{1,6}|#\d{1,7}|[a-z]+);/gi, (whole, name) => {
    if (name[0] !== "#") return ENTITIES[name] ?? whole;
    const point = name[1] === "x" || name[1] === "X" ? parseInt(name.slice(2), 16) : Number(name.slice(1));
    return point > 0 && point <= 0x10ffff && !(point >= 0xd800 && point <= 0xdfff) ? String.fromCodePoint(point) : whole;
  });
}

const cleared = (text) => text.replace(/[\ue000\ue001]/g, "\ufffd");
const unmarked = (text) => text.replace(/\ue000\d+\ue001/g, "");

/** The text with the number of each mark at its end. */
export function withPlaces(text, marks) {
  text = cleared(text);
  const ends = marks.map((mark, i) => [unitsAt(text, mark.end), i]).sort((a, b) => b[0] - a[0] || b[1] - a[1]);
  for (let [at, i] of ends) {
    // At a word's end, and before the space that may close the span, so that the mark stays with its sentence.
    while (at > 0 && at < text.length && /[\p{L}\p{N}]{2}/u.test(text.slice(at - 1, at + 1))) at += 1;
    while (at > 0 && /\s/.test(text[at - 1])) at -= 1;
    text = `${text.slice(0, at)}${OPEN}${i}${CLOSE}${text.slice(at)}`;
  }
  return text;
}

const SAFE = /^(https?:|mailto:)/i;

/** What an address leads to, or null where a link would not be harmless. */
export function safeAddress(href) {
  const plain = unmarked(decoded(href ?? "")).trim();
  if (!SAFE.test(plain)) return null;
  try {
    return new URL(plain).href;
  } catch {
    return null;
  }
}

function inlineText(text, chip) {
  const out = [];
  for (let rest = decoded(text); rest; ) {
    const found = PLACES.exec(rest);
    if (!found) {
      out.push(rest);
      break;
    }
    if (found.index) out.push(rest.slice(0, found.index));
    if (chip) {
      // The mark is not parted from the word before it.
      const [, before, word] = /^(.*?)(\S{0,40})$/s.exec(typeof out.at(-1) === "string" ? out.pop() : "");
      out.push(before, h("span", { class: "together" }, word, chip(Number(found[1]))));
    }
    rest = rest.slice(found.index + found[0].length);
  }
  return out;
}

function inline(tokens, chip) {
  return (tokens ?? []).map((token) => {
    switch (token.type) {
      case "strong":
        return h("strong", null, inline(token.tokens, chip));
      case "em":
        return h("em", null, inline(token.tokens, chip));
      case "del":
        return h("del", null, inline(token.tokens, chip));
      case "codespan":
        return h("code", null, unmarked(decoded(token.text)));
      case "br":
        return h("br");
      case "link": {
        const href = safeAddress(token.href);
        const inside = inline(token.tokens, chip);
        return href ? h("a", { href, target: "_blank", rel: "noopener noreferrer" }, inside) : h("span", null, inside);
      }
      case "image": {
        const href = safeAddress(token.href);
        const words = `[picture: ${unmarked(token.text) || "without a description"}]`;
        return href ? h("a", { href, target: "_blank", rel: "noopener noreferrer" }, words) : words;
      }
      case "html":
        return /^<br\s*\/?>$/i.test(token.raw) ? h("br") : inlineText(token.raw, chip);
      case "escape":
        return inlineText(token.text, chip);
      default:
        return token.tokens ? inline(token.tokens, chip) : inlineText(token.text ?? token.raw ?? "", chip);
    }
  });
}

function cells(row, Tag, aligned, chip) {
  return row.map((cell, i) =>
    h(Tag, { class: aligned[i] ? `to-${aligned[i]}` : undefined, scope: Tag === "th" ? "col" : undefined }, inline(cell.tokens, chip)),
  );
}

function block(token, chip, heading) {
  switch (token.type) {
    case "heading":
      return h(`h${heading}`, null, inline(token.tokens, chip));
    case "paragraph":
      return h("p", null, inline(token.tokens, chip));
    case "text":
      return token.tokens ? inline(token.tokens, chip) : inlineText(token.text, chip);
    case "code":
      return h(Code, { text: unmarked(token.text), lang: (token.lang ?? "").split(/\s/)[0] });
    case "blockquote":
      return h("blockquote", null, blocks(token.tokens, chip, heading));
    case "list": {
      const items = token.items.map((item) =>
        h(
          "li",
          { class: item.task ? "task" : undefined },
          item.task ? h("span", { class: "tick", role: "img", "aria-label": item.checked ? "done" : "open" }, item.checked ? "\u2611" : "\u2610") : null,
          blocks(item.tokens.filter((inner) => inner.type !== "checkbox"), chip, heading),
        ),
      );
      return token.ordered ? h("ol", token.start > 1 ? { start: token.start } : null, items) : h("ul", null, items);
    }
    case "table":
      return h(
        "div",
        { class: "table", tabIndex: 0, role: "group", "aria-label": "Table" },
        h(
          "table",
          null,
          h("thead", null, h("tr", null, cells(token.header, "th", token.align, chip))),
          h("tbody", null, token.rows.map((row) => h("tr", null, cells(row, "td", token.align, chip)))),
        ),
      );
    case "hr":
      return h("hr");
    case "space":
    case "def":
      return null;
    case "html":
      return h("p", { class: "raw" }, inlineText(token.raw.trim(), chip));
    default:
      return h("p", null, token.tokens ? inline(token.tokens, chip) : inlineText(token.raw ?? "", chip));
  }
}

const blocks = (tokens, chip, heading) => (tokens ?? []).map((token) => block(token, chip, heading));

function Code({ text, lang }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard?.writeText(text).catch(() => {});
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return h(
    "div",
    { class: "code" },
    h("div", { class: "code-head" }, h("span", null, lang || "text"), h("button", { type: "button", class: "quiet small", onClick: copy }, copied ? "Copied" : "Copy code")),
    h("pre", { tabIndex: 0, role: "group", "aria-label": lang ? `Code, ${lang}` : "Code" }, h("code", null, text)),
  );
}

/** One block of the text; drawn again only if its own source changed. */
class Block extends Component {
  shouldComponentUpdate(next) {
    return next.token.raw !== this.props.token.raw || next.chip !== this.props.chip || next.heading !== this.props.heading;
  }

  render({ token, chip, heading }) {
    return block(token, chip, heading);
  }
}

/** Blocks of a text that grows: what stands before the last blocks is settled and not read again. */
class Reader {
  constructor() {
    this.source = "";
    this.settled = [];
    this.length = 0;
    this.tail = [];
  }

  read(text) {
    if (text === this.source) return;
    if (!text.startsWith(this.source.slice(0, this.length)) || text.length < this.source.length) {
      this.settled = [];
      this.length = 0;
    }
    this.source = text;
    const tokens = lexer(text.slice(this.length));
    // A list or a table may still grow after a blank line; two blocks further on nothing changes it.
    let last = tokens.length;
    for (let open = 0; last > 0 && open < 2; ) if (tokens[--last].type !== "space") open += 1;
    const raws = tokens.slice(0, last);
    const length = raws.reduce((sum, token) => sum + token.raw.length, 0);
    // marked puts tabs and line ends in order first, which changes lengths; then nothing is settled.
    if (last > 0 && text.slice(this.length, this.length + length) === raws.map((token) => token.raw).join("")) {
      this.settled.push(...raws.filter((token) => token.type !== "space"));
      this.length += length;
      this.tail = tokens.slice(last);
    } else this.tail = tokens;
    this.tail = this.tail.filter((token) => token.type !== "space");
  }

  get all() {
    return [...this.settled, ...this.tail];
  }
}

/** Levels for headings: none is skipped, whatever the text begins with. */
function levels(tokens) {
  let last = 2;
  return tokens.map((token) => {
    if (token.type !== "heading") return Math.min(6, last + 1);
    last = Math.min(6, Math.max(3, token.depth + 2), last + 1);
    return last;
  });
}

const SOONER = 60; // blocks that are drawn at once; the others follow in later frames

/** A text in Markdown. `marks`: citations, drawn by `chip(number)` at the end of their words. */
export function Markdown({ text, marks = null, chip = null, live = false }) {
  const reader = useRef(null);
  reader.current ??= new Reader();
  reader.current.read(marks?.length ? withPlaces(text, marks) : cleared(text));
  const tokens = reader.current.all;
  const [most, setMost] = useState(SOONER);
  useLayoutEffect(() => {
    if (live || tokens.length <= most) return undefined;
    const timer = setTimeout(() => setMost(most + SOONER));
    return () => clearTimeout(timer);
  }, [most, tokens.length, live]);
  const drawn = live ? tokens : tokens.slice(0, most);
  const headings = levels(drawn);
  return h("div", { class: "text" }, drawn.map((token, i) => h(Block, { key: i, token, chip, heading: headings[i] })));
}
