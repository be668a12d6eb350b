// One message: a question, or a reply with its thoughts, citations, table and figures.
import { Component, Fragment, classes, h, html, useCallback, useEffect, useRef, useState } from "./view.js";
import * as actions from "./actions.js";
import { Icon, IconButton, Progress } from "./controls.js";
import { count, plural, rate, shown, short, time } from "./format.js";
import { copy } from "./keys.js";
import { download, extractingWords } from "./library.js";
import { Markdown } from "./markdown.js";
import { set, state, useStore } from "./store.js";

/** Drawn again only if the message, or what can be done with it, is another. */
export class Message extends Component {
  shouldComponentUpdate(next) {
    return ["message", "last", "busy", "editing"].some((name) => next[name] !== this.props[name]);
  }

  render({ message, last, busy, editing }) {
    if (message.role === "tool") return null;
    const user = message.role === "user";
    return html`<article class=${classes("message", message.role)} aria-label=${user ? "You" : "Jamba"} data-index=${message.index}>
      ${user ? html`<${Question} message=${message} busy=${busy} editing=${editing} />` : html`<${Reply} message=${message} last=${last} busy=${busy} />`}
    </article>`;
  }
}

const TASKS = { summarize: "Summary", compare: "Comparison", table: "Table" };

/** What was asked for by a task, in words instead of the instruction that the model got. */
function taskWords(task) {
  const parts = [];
  if (task.kind === "summarize") parts.push(task.length, task.style === "bullets" ? "bullet points" : task.style, task.focus && `on ${task.focus}`, task.language && `in ${task.language}`);
  if (task.kind === "compare") parts.push(task.focus && `on ${task.focus}`, task.language && `in ${task.language}`);
  if (task.kind === "table") parts.push((task.columns ?? []).map((column) => column.name).join(", "), task.instruction);
  return parts.filter(Boolean).map(shown).join(" · ");
}

function Question({ message, busy, editing }) {
  const documents = (message.documents ?? []).map((id) => [id, actions.documentName(id)]);
  if (editing) return html`<${Editor} message=${message} />`;
  return html`<${Fragment}>
    <div class="question">
      ${documents.length > 0 && html`<div class="chips">${documents.map(([id, name]) => html`<button type="button" class="chip" disabled=${!name} onClick=${() => actions.openDocument(id)}><${Icon} name="file" />${name ?? "A deleted document"}</button>`)}</div>`}
      ${message.task && TASKS[message.task.kind]
        ? html`<p><b>${TASKS[message.task.kind]}</b>${taskWords(message.task) && html`<span class="task-words"> ${taskWords(message.task)}</span>`}</p>`
        : html`<p class="said">${message.text}</p>`}
    </div>
    <div class="actions">
      <${Siblings} message=${message} busy=${busy} />
      <${IconButton} icon="copy" label="Copy the question" onClick=${() => copy(message.text)} />
      ${!message.task && html`<${IconButton} icon="edit" label="Edit the question" disabled=${busy} onClick=${() => set({ editing: message.index })} />`}
    </div>
  <//>`;
}

function Editor({ message }) {
  const [text, setText] = useState(message.text);
  const field = useRef(null);
  useEffect(() => {
    field.current.focus();
    field.current.setSelectionRange(text.length, text.length);
  }, []);
  const save = () => text.trim() && actions.edit(message.index, text);
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      save();
    }
  };
  return html`<div class="editor">
    <textarea ref=${field} aria-label="Edit the question" rows="3" value=${text} onInput=${(e) => setText(e.target.value)} onKeyDown=${keys}></textarea>
    <div class="row-actions"><span class="hint">What follows is kept as another version.</span>
      <button type="button" class="plain" onClick=${() => set({ editing: null })}>Cancel</button>
      <button type="button" class="primary" disabled=${!text.trim()} onClick=${save}>Ask again</button></div>
  </div>`;
}

function Siblings({ message, busy }) {
  const { at, count: all } = message.siblings ?? {};
  if (!all || all < 2) return null;
  return html`<span class="siblings" role="group" aria-label="Versions">
    <${IconButton} icon="left" label="Previous version" disabled=${busy || at === 0} onClick=${() => actions.selectSibling(message.index, at - 1)} />
    <span>${at + 1} of ${all}</span>
    <${IconButton} icon="right" label="Next version" disabled=${busy || at === all - 1} onClick=${() => actions.selectSibling(message.index, at + 1)} />
  </span>`;
}

/** The places that the marks name, each once; a mark has its place's number. */
function placesOf(marks) {
  const places = [];
  const numbers = marks.map((mark) => {
    const key = JSON.stringify([mark.document, mark.page, mark.label, mark.quote]);
    let at = places.findIndex((place) => place.key === key);
    if (at < 0) at = places.push({ key, mark }) - 1;
    return at + 1;
  });
  return { places, numbers };
}

const placeWords = (mark) => {
  const name = mark.document ? actions.documentName(mark.document) : null;
  // A label begins with its file's name.
  const label = name && mark.label?.startsWith(name) ? mark.label.slice(name.length).replace(/^[,\s]+/, "") : mark.label;
  return { name: name ?? (mark.document ? "a deleted document" : shown(mark.label ?? "an unknown document")), place: name ? (label ?? `page ${mark.page}`) : null, open: Boolean(name) };
};

function Cite({ mark, number, id }) {
  const { name, place, open } = placeWords(mark);
  const words = `Source ${number}: ${name}${place ? `, ${place}` : ""}${mark.found ? "" : "; the words stand nowhere there"}`;
  if (!open) return html`<span class="cite lost" title=${words}>${number}</span>`;
  return html`<button type="button" id=${id} class=${classes("cite", !mark.found && "unfound")} aria-label=${words} title=${words}
    onClick=${() => actions.openDocument(mark.document, mark.page ?? 1, mark, id)}>${number}</button>`;
}

function Citations({ message, numbers, places }) {
  if (!places.length) return message.cited === false && !message.table && actions.sourceIds().length > 0 ? html`<p class="note-line">No source was cited.</p>` : null;
  return html`<div class="citations"><h3>Sources</h3><ol>${places.map(({ mark }, i) => {
    const { name, place, open } = placeWords(mark);
    const id = `source-${message.index}-${i}`;
    const inside = html`<span class="number" aria-hidden="true">${i + 1}</span><span class="cited-name">${name}</span>${place && html`<span class="cited-place">${place}</span>`}${!mark.found && html`<span class="cited-note">words not found</span>`}${mark.by === "words" && !message.parts && html`<span class="cited-note" title="The reply named another place; its words stand here">by its words</span>`}`;
    return html`<li>${open
      ? html`<button type="button" id=${id} class="citation" onClick=${() => actions.openDocument(mark.document, mark.page ?? 1, mark, id)}>${inside}</button>`
      : html`<span class="citation">${inside}</span>`}</li>`;
  })}</ol></div>`;
}

function Reply({ message, last, busy }) {
  const marks = message.citations ?? [];
  const { places, numbers } = placesOf(marks);
  const chip = useCallback((i) => (marks[i] ? h(Cite, { mark: marks[i], number: numbers[i], id: `cite-${message.index}-${i}` }) : null), [message]);
  const [copied, setCopied] = useState(false);
  const copyReply = async () => {
    if (await copy(message.text)) {
      setCopied(true);
      setTimeout(() => setCopied(false), 1500);
    }
  };
  return html`<${Fragment}>
    ${message.thought && html`<${Thought} text=${message.thought} />`}
    ${message.table ? html`<${Table} table=${message.table} index=${message.index} />` : html`<${Markdown} text=${message.text} marks=${marks} chip=${chip} />`}
    ${message.finish === "length" && html`<p class="note-line">The reply reached its longest length.</p>`}
    ${message.parts > 0 && html`<p class="note-line">The sources are larger than the context: ${plural(message.parts, "part")} were asked, and the answer is made of what they said.</p>`}
    ${message.left_out?.length > 0 && html`<p class="note-line">Left out, since ${message.left_out.length > 1 ? "they" : "it"} cannot be read: ${message.left_out.map(shown).join(", ")}.</p>`}
    ${message.finish === "stopped" && html`<p class="note-line">Stopped.</p>`}
    <${Citations} message=${message} numbers=${numbers} places=${places} />
    <div class=${classes("actions", last && "stay")}>
      <${Siblings} message=${message} busy=${busy} />
      <${IconButton} icon=${copied ? "check" : "copy"} label="Copy the reply" onClick=${copyReply} />
      ${last && html`<${IconButton} icon="again" label="Regenerate the reply" disabled=${busy} onClick=${actions.regenerate} />`}
      <${IconButton} icon="branch" label="Branch from here" disabled=${busy} onClick=${() => actions.branch(message.index)} />
      <${Figures} stats=${message.stats} />
    </div>
  <//>`;
}

function Thought({ text, live = false }) {
  return html`<details class="thought"><summary>${live ? "Thinking…" : "Thoughts"}</summary><${Markdown} text=${text} live=${live} /></details>`;
}

function Figures({ stats }) {
  if (!stats) return null;
  const parts = [];
  if (stats.reused_tokens) parts.push(`${count(stats.reused_tokens)} reused`);
  if (stats.read_tokens) parts.push(`${count(stats.read_tokens)} read${stats.read_rate ? ` at ${short(stats.read_rate)}/s` : ""}`);
  parts.push(`${count(stats.written_tokens ?? 0)} written${stats.write_rate ? ` at ${rate(stats.write_rate)}` : ""}`);
  const title = [
    stats.first_token_seconds !== undefined && stats.first_token_seconds !== null && `first word after ${time(stats.first_token_seconds)}`,
    stats.prompt_tokens && `${plural(stats.prompt_tokens, "token")} in all before the reply`,
  ].filter(Boolean).join(", ");
  return html`<span class="figures" title=${title || undefined}>${parts.join(" · ")}</span>`;
}

const MOST_ROWS = 100;

function Table({ table, index }) {
  const [most, setMost] = useState(MOST_ROWS);
  const href = (format) => `/v1/library/sessions/${encodeURIComponent(state.name)}/tables/${index}?format=${format}`;
  const columns = table.columns ?? [];
  const rows = table.rows ?? [];
  const show = (value) => (value === null || value === undefined ? "" : typeof value === "boolean" ? (value ? "yes" : "no") : String(value));
  return html`<div class="extracted">
    <div class="table" tabindex="0" role="group" aria-label="Extracted table"><table>
      <thead><tr>${columns.map((column) => html`<th scope="col" class=${column.type === "number" ? "to-right" : undefined}>${column.name}</th>`)}</tr></thead>
      <tbody>${rows.slice(0, most).map((row) => html`<tr>${columns.map((column, i) => html`<td class=${column.type === "number" ? "to-right" : undefined}>${show(row[i])}</td>`)}</tr>`)}</tbody>
    </table></div>
    <div class="row-actions"><span class="hint">${plural(rows.length, "row")}</span>
      ${rows.length > most && html`<button type="button" class="quiet small" onClick=${() => setMost(most + 500)}>Show more</button>`}
      ${["csv", "json", "md"].map((format) => html`<button type="button" class="quiet small" aria-label=${`Download as ${{ csv: "CSV", json: "JSON", md: "Markdown" }[format]}`} onClick=${() => download(href(format))}><${Icon} name="download" />${{ csv: "CSV", json: "JSON", md: "Markdown" }[format]}</button>`)}
    </div>
  </div>`;
}

/** The rows that are whole in JSON that is still being written. */
function rowsSoFar(text) {
  const end = text.lastIndexOf("}");
  if (end < 0) return 0;
  return (text.slice(0, end + 1).match(/\}/g) ?? []).length;
}

/** The reply that is being written. */
export function LiveReply() {
  const live = useStore((s) => s.live);
  if (!live) return null;
  const writing = live.text !== "";
  return html`<article class="message assistant live" aria-label="Jamba" aria-busy="true">
    ${live.thought && html`<${Thought} text=${live.thought} live=${!writing} />`}
    ${!writing && html`<${Status} status=${live.status} thinking=${Boolean(live.thought)} />`}
    ${writing && (live.kind === "table"
      ? html`<p class="status"><span class="pulse"></span>${plural(rowsSoFar(live.text), "row")} so far</p>`
      : html`<${Markdown} text=${live.text} live />`)}
  </article>`;
}

const WAITING = { waiting: "Waiting for the model", extracting: "Reading the files", writing: "Thinking about the answer" };

function Status({ status, thinking }) {
  if (status.phase === "extracting") return html`<p class="status"><span class="pulse"></span>Opening ${shown(status.text)}: ${extractingWords(status)}</p>`;
  if (status.phase === "reading" && status.total) {
    const facts = [`${count(status.done)} of ${plural(status.total, "token")}`];
    if (status.rate) facts.push(`${short(status.rate)}/s`);
    if (status.left_s >= 1) facts.push(`${time(status.left_s)} left`);
    return html`<div class="status reading">
      <p><b>Reading${status.parts ? ` part ${status.part} of ${status.parts}` : ""}</b>${status.known ? html`<span class="hint"> ${short(status.known)} known already</span>` : null}</p>
      <${Progress} value=${status.done / status.total} label="Reading" />
      <p class="hint">${facts.join(" · ")}</p>
    </div>`;
  }
  const words = thinking ? null : status.phase === "waiting" && status.position ? `Waiting: ${status.position} before this one` : (status.text ?? WAITING[status.phase] ?? "Working");
  return words && html`<p class="status"><span class="pulse"></span>${words}</p>`;
}
