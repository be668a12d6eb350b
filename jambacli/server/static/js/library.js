// The left side: the sources of the open conversation, the conversations and the other documents, and the search over all.
import { classes, html, useState } from "./view.js";
import * as actions from "./actions.js";
import { Icon, IconButton, Menu, Progress } from "./controls.js";
import { ask, confirm } from "./dialogs.js";
import { count, plural, short, shown, size, time, when } from "./format.js";
import { readNow, readingOf, stopReading } from "./reading.js";
import { chooseFiles, dismissUpload } from "./sources.js";
import { set, useStore } from "./store.js";
import { setTheme, themeNow } from "./keys.js";

export const addItems = () => [
  { label: "Files…", icon: "file", action: () => chooseFiles() },
  { label: "A folder…", icon: "folder", action: () => chooseFiles(true) },
  { label: "Paste text…", icon: "paste", action: () => set({ dialog: { kind: "paste" } }) },
];

export function Library() {
  const found = useStore((s) => s.found);
  const loaded = useStore((s) => s.loaded);
  return html`<nav class="library" aria-label="Library">
    <header>
      <p class="brand"><img src="/static/icon.svg" alt="" width="24" height="24" />Jamba</p>
      <${IconButton} icon="compose" label="New conversation (Alt+N)" onClick=${actions.newConversation} />
      <${IconButton} icon="close" label="Close the library" class="narrow-only" onClick=${() => set({ pane: null })} />
    </header>
    <${Search} />
    <div class="lists" tabindex="-1">
      ${found ? html`<${Found} found=${found} />` : loaded ? html`<${Sources} /><${Conversations} /><${Others} />` : null}
    </div>
    <${Foot} />
  </nav>`;
}

function Search() {
  const query = useStore((s) => s.query);
  const clear = (event) => {
    if (event.key === "Escape" && query) {
      event.stopPropagation();
      actions.search("");
    }
  };
  return html`<div class="search" role="search">
    <${Icon} name="search" />
    <input id="search" type="search" placeholder="Search names and texts" aria-label="Search the library" autocomplete="off" spellcheck=${false}
      value=${query} onInput=${(event) => actions.search(event.target.value)} onKeyDown=${clear} />
    ${query ? html`<${IconButton} icon="close" label="Clear the search" onClick=${() => actions.search("")} />` : html`<kbd aria-hidden="true">/</kbd>`}
  </div>`;
}

function Sources() {
  const session = useStore((s) => s.session);
  const name = useStore((s) => s.name);
  const documents = useStore((s) => s.documents);
  const uploads = useStore((s) => s.uploads);
  const picked = useStore((s) => s.picked);
  useStore((s) => s.gathered);
  useStore((s) => s.later);
  if (name && !session) return null;
  const ids = actions.sourceIds();
  const known = new Map(documents.map((document) => [document.id, document]));
  const able = actions.askedIds().length;
  const several = able > 1;
  return html`<section aria-labelledby="sources-title">
    <div class="section-head"><h2 id="sources-title">Sources</h2>
      ${several && html`<span class="note">${picked ? `${picked.length} of ${able} asked` : "all asked"}</span>`}
      <${Menu} label="Add sources" icon="plus" items=${addItems()} />
    </div>
    ${!ids.length && !uploads.length && html`<p class="empty"><span class="with-mouse">Drop files anywhere on this page.</span><span class="with-finger">None yet.</span></p>`}
    <ul class="rows">
      ${ids.map((id) => html`<${SourceRow} key=${id} id=${id} document=${known.get(id)} asked=${!picked || picked.includes(id)} several=${several} />`)}
      ${uploads.map((upload) => html`<${UploadRow} key=${`upload-${upload.key}`} upload=${upload} />`)}
    </ul>
  </section>`;
}

// Files of other kinds are read in parts that nobody counts.
const COUNTED = ["page", "sheet", "slide", "chapter", "file"];

/** What is said under a document's name. */
export function documentFacts(document, context, { reading = null, asked = false } = {}) {
  if (document.state === "extracting") return "";
  if (document.state === "refused") {
    const why = document.message.replace(`${document.name}: `, "");
    return why.charAt(0).toUpperCase() + why.slice(1);
  }
  if (reading && reading.state !== "too_large") return readingFacts(document, reading);
  const parts = [];
  if (COUNTED.includes(document.unit)) parts.push(plural(document.pages, document.unit));
  else parts.push(size(document.bytes ?? 0));
  if (document.tokens === null) parts.push("counting tokens");
  else {
    const stored = document.read?.tokens_stored ?? 0;
    if (document.fits === false) parts.push(`${short(document.tokens)} tokens, asked in ${partsOf(document.tokens, context)} parts`);
    else if (asked || stored >= document.tokens * 0.95) parts.push("read");
    else if (document.estimate_s >= 1) parts.push(`${time(document.estimate_s)} to read`);
    else parts.push(`${short(document.tokens)} tokens`);
  }
  return parts.join(" · ");
}

/** About how many parts documents are read in that are larger than the context. */
export const partsOf = (tokens, context) => Math.max(2, Math.ceil(tokens / (0.85 * (context || 1))));

function readingFacts(document, reading) {
  const total = reading.total || document.tokens;
  if (reading.state === "done") return [COUNTED.includes(document.unit) && plural(document.pages, document.unit), "read"].filter(Boolean).join(" · ");
  if (reading.state === "waiting") return total ? `${short(total)} tokens wait to be read` : "Waits to be read";
  if (reading.state === "reading") return [`${short(reading.done)} of ${short(total)} tokens`, reading.left_s >= 1 && `${time(reading.left_s)} left`].filter(Boolean).join(" · ");
  return `${total ? `${short(total)} tokens, not` : "Not"} read yet`;
}

function SourceRow({ id, document, asked, several }) {
  const opened = useStore((s) => s.viewer?.id === id);
  const context = useStore((s) => s.session?.context ?? s.page?.context);
  const ahead = useStore((s) => (s.live ? null : s.reading));
  if (!document)
    return html`<li class="row"><div class="row-main"><span class="row-name">A deleted document</span></div>
      <${IconButton} icon="close" label="Take it out of the sources" onClick=${() => actions.detach(id)} /></li>`;
  const name = shown(document.name);
  const refused = document.state === "refused";
  const reading = document.state === "ready" ? readingOf(ahead, id) : null;
  const now = reading?.state === "reading";
  const facts = { reading, asked: !actions.isWaiting(id) };
  return html`<li class=${classes("row", opened && "current", refused && "refused")}>
    ${several && !refused && html`<label class="tick" title="Ask it"><input type="checkbox" checked=${asked} aria-label=${`Ask ${name}`} onChange=${() => actions.pick(id)} /></label>`}
    <button type="button" class="row-main" aria-current=${opened ? "true" : null} disabled=${refused} onClick=${() => actions.openDocument(id)}>
      <span class="row-name">${name}</span>
      ${document.state === "extracting"
        ? html`<${Extracting} document=${document} />`
        : html`<span class="row-facts">${refused && html`<${Icon} name="warn" />`}${documentFacts(document, context, facts)}</span>${now && html`<${Progress} value=${reading.done / reading.total} label=${`Reading ${name}`} />`}`}
    </button>
    ${now && html`<${IconButton} icon="stop" class="shown" label="Do not read the sources now" onClick=${stopReading} />`}
    ${refused && actions.isWaiting(id) && html`<${IconButton} icon="close" class="shown" label=${`Take ${name} out of the sources`} onClick=${() => actions.detach(id)} />`}
    <${Menu} label=${`More for ${name}`} items=${[
      reading?.state === "cancelled" && { label: "Read it now", icon: "lines", action: readNow },
      !refused && { label: "Open", icon: "file", action: () => actions.openDocument(id) },
      several && !refused && { label: "Ask only this one", icon: "check", action: () => set({ picked: [id] }) },
      ...documentItems(document),
      actions.isWaiting(id) && { label: "Take out of the sources", icon: "close", action: () => actions.detach(id) },
      deleteItem(document),
    ]} />
  </li>`;
}

/** "page 12 of 200 · 8 s left": how far a file is that is being opened. */
export function extractingWords(progress) {
  const { done, total, unit, left_s: left } = progress ?? {};
  if (!progress) return "Waits to be opened";
  if (!total) return done ? plural(done, "page") : "Opening the file";
  const place = `${(unit || "parts").replace(/s$/, "")} ${count(done)} of ${count(total)}`;
  return left >= 1 ? `${place} · ${time(left)} left` : place;
}

function Extracting({ document }) {
  const { done, total } = document.progress ?? {};
  const words = extractingWords(document.progress);
  return html`<span class="row-facts">${words}</span><${Progress} value=${total ? done / total : null} label=${`Extracting ${shown(document.name)}`} />`;
}

function UploadRow({ upload }) {
  return html`<li class=${classes("row", upload.error && "refused")}>
    <div class="row-main"><span class="row-name">${upload.name}</span>
      ${upload.error
        ? html`<span class="row-facts"><${Icon} name="warn" />${upload.error}</span>`
        : html`<span class="row-facts">${upload.share ? `${Math.round(100 * upload.share)}% sent` : "Waiting"}</span><${Progress} value=${upload.share} label=${`Sending ${upload.name}`} />`}
    </div>
    <${IconButton} icon="close" label=${`Dismiss ${upload.name}`} onClick=${() => dismissUpload(upload.key)} />
  </li>`;
}

const documentItems = (document) => [
  { label: "Rename…", icon: "edit", action: async () => {
    const name = await ask({ title: "Rename the document", label: "Name", value: document.name });
    if (name) actions.renameDocument(document.id, name);
  } },
];

const deleteItem = (document) => ({ label: "Delete…", icon: "trash", danger: true, action: async () => {
  const sure = await confirm({
    title: "Delete this document?",
    text: `“${shown(document.name)}” (${size(document.bytes ?? 0)}) is deleted with its pictures and all that was stored of it. Conversations about it keep their text.`,
    yes: "Delete",
  });
  if (sure) actions.deleteDocument(document.id);
} });

function Conversations() {
  const sessions = useStore((s) => s.sessions);
  const [most, setMost] = useState(60);
  return html`<section aria-labelledby="conversations-title">
    <div class="section-head"><h2 id="conversations-title">Conversations</h2></div>
    ${!sessions.length && html`<p class="empty">None yet. Those of <code>jamba chat</code> appear here too.</p>`}
    <ul class="rows">${sessions.slice(0, most).map((session) => html`<${SessionRow} key=${session.name} session=${session} />`)}</ul>
    ${sessions.length > most && html`<button type="button" class="quiet small" onClick=${() => setMost(most + 100)}>Show ${Math.min(100, sessions.length - most)} more</button>`}
  </section>`;
}

// A name that the server made says nothing.
const made = (name) => /^chat-\d{8}-\d{6}/.test(name ?? "");
export const sessionTitle = (session) => shown(session?.title || (made(session?.name) ? "New conversation" : session?.name) || "New conversation");

export const exportFile = (name, format) => download(`/v1/library/sessions/${encodeURIComponent(name)}/export?format=${format}`);

/** Let the browser save what a route answers. */
export function download(href) {
  const link = document.createElement("a");
  link.href = href;
  link.download = "";
  link.click();
}

export const sessionItems = (session) => [
  { label: "Rename…", icon: "edit", action: async () => {
    const title = await ask({ title: "Rename the conversation", label: "Title", value: session.title || session.name });
    if (title) actions.changeSession(session.name, { title });
  } },
  { label: "Save as Markdown", icon: "download", action: () => exportFile(session.name, "md") },
  { label: "Save as JSON", icon: "download", action: () => exportFile(session.name, "json") },
  { label: "Delete…", icon: "trash", danger: true, action: async () => {
    const sure = await confirm({
      title: "Delete this conversation?",
      text: `“${sessionTitle(session)}” is deleted with all that was stored for it alone. Its documents stay in the library.`,
      yes: "Delete",
    });
    if (sure) actions.deleteSession(session.name);
  } },
];

function SessionRow({ session, excerpt = null }) {
  const current = useStore((s) => s.name === session.name);
  const writing = useStore((s) => (s.name === session.name ? Boolean(s.live) : session.running));
  const title = sessionTitle(session);
  return html`<li class=${classes("row", current && "current")}>
    <button type="button" class="row-main" aria-current=${current ? "page" : null} onClick=${() => actions.openSession(session.name)}>
      <span class="row-name">${title}</span>
      ${excerpt ? html`<${Excerpt} excerpt=${excerpt} />` : html`<span class="row-facts">${writing ? "Writing…" : when(session.modified)}${session.documents?.length ? ` · ${plural(session.documents.length, "source")}` : ""}</span>`}
    </button>
    <${Menu} label=${`More for ${title}`} items=${sessionItems(session)} />
  </li>`;
}

function Excerpt({ excerpt }) {
  const text = typeof excerpt === "string" ? excerpt : (excerpt?.text ?? "");
  const { start = 0, end = 0 } = typeof excerpt === "string" ? {} : (excerpt ?? {});
  const points = [...text];
  const cut = (from, to) => points.slice(from, to).join("");
  return html`<span class="row-facts excerpt">${cut(0, start)}${end > start && html`<mark>${cut(start, end)}</mark>`}${cut(end)}</span>`;
}

/** Documents of the library that are no sources of the open conversation. */
function Others() {
  const documents = useStore((s) => s.documents);
  useStore((s) => s.session);
  useStore((s) => s.gathered);
  useStore((s) => s.later);
  const here = new Set(actions.sourceIds());
  const others = documents.filter((document) => !here.has(document.id) && document.state !== "refused");
  const refused = documents.filter((document) => !here.has(document.id) && document.state === "refused");
  if (!others.length && !refused.length) return null;
  return html`<section aria-labelledby="documents-title">
    <div class="section-head"><h2 id="documents-title">Other documents</h2><span class="note">${others.length + refused.length}</span></div>
    <ul class="rows">${[...others, ...refused].slice(0, 200).map((document) => html`<${DocumentRow} key=${document.id} document=${document} />`)}</ul>
  </section>`;
}

function DocumentRow({ document, excerpt = null }) {
  const opened = useStore((s) => s.viewer?.id === document.id);
  const context = useStore((s) => s.page?.context);
  const here = useStore((s) => (s.session ? s.session.documents : s.gathered)?.includes(document.id));
  const name = shown(document.name);
  return html`<li class=${classes("row", opened && "current", document.state === "refused" && "refused")}>
    <button type="button" class="row-main" disabled=${document.state === "refused"} aria-current=${opened ? "true" : null} onClick=${() => actions.openDocument(document.id, excerpt?.page ?? 1)}>
      <span class="row-name">${name}</span>
      ${excerpt?.text ? html`<${Excerpt} excerpt=${excerpt} />` : html`<span class="row-facts">${documentFacts(document, context)}</span>`}
    </button>
    ${!here && document.state !== "refused" && html`<${IconButton} icon="plus" label=${`Make ${name} a source`} onClick=${() => actions.attach(document.id)} />`}
    <${Menu} label=${`More for ${name}`} items=${[...documentItems(document), deleteItem(document)]} />
  </li>`;
}

function Found({ found }) {
  if (!found.documents.length && !found.sessions.length) return html`<p class="empty">Nothing has these words.</p>`;
  return html`
    ${found.documents.length > 0 && html`<section aria-labelledby="found-documents"><div class="section-head"><h2 id="found-documents">Documents</h2><span class="note">${found.documents.length}</span></div>
      <ul class="rows">${found.documents.map((document) => html`<${DocumentRow} key=${document.id} document=${document} excerpt=${document.excerpt} />`)}</ul></section>`}
    ${found.sessions.length > 0 && html`<section aria-labelledby="found-sessions"><div class="section-head"><h2 id="found-sessions">Conversations</h2><span class="note">${found.sessions.length}</span></div>
      <ul class="rows">${found.sessions.map((session) => html`<${SessionRow} key=${session.name} session=${session} excerpt=${session.excerpt} />`)}</ul></section>`}`;
}

function Foot() {
  const page = useStore((s) => s.page);
  const [theme, setShown] = useState(themeNow());
  const dark = theme === "dark";
  return html`<footer>
    <button type="button" class="quiet model" onClick=${() => set({ dialog: { kind: "settings" } })} title="Model and settings">
      <${Icon} name="settings" /><span>${page ? shown(page.model) : ""}</span></button>
    <${IconButton} icon=${dark ? "sun" : "moon"} label=${dark ? "Light" : "Dark"} onClick=${() => setShown(setTheme(dark ? "light" : "dark"))} />
    <${IconButton} icon="help" label="Keyboard shortcuts (?)" onClick=${() => set({ dialog: { kind: "help" } })} />
  </footer>`;
}
