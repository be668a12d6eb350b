// The middle: the messages, the reply that is being written, and what to do when there is nothing yet.
import { classes, html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";
import * as actions from "./actions.js";
import { Composer } from "./composer.js";
import { Icon, IconButton, Menu } from "./controls.js";
import { plural, short, shown, time } from "./format.js";
import { addItems, partsOf, sessionItems, sessionTitle } from "./library.js";
import { LiveReply, Message } from "./message.js";
import { isReading } from "./reading.js";
import { chooseFiles } from "./sources.js";
import { set, state, useStore } from "./store.js";

export function Conversation() {
  const name = useStore((s) => s.name);
  const loaded = useStore((s) => s.loaded);
  const offline = useStore((s) => s.offline);
  return html`<main class="conversation" id="conversation" tabindex="-1">
    <h1 class="unseen">Jamba</h1>
    <${Head} />
    ${offline && html`<p class="banner"><span class="pulse"></span>The server does not answer. This page tries again; nothing that was written is lost.</p>`}
    ${name ? html`<${Messages} key=${name} />` : loaded ? html`<${Beginning} />` : html`<div class="scroll"></div>`}
    <${Composer} />
  </main>`;
}

function Head() {
  const session = useStore((s) => s.session);
  const title = session ? sessionTitle(session) : "New conversation";
  useEffect(() => {
    document.title = session ? `${title} · Jamba` : "Jamba";
  }, [title]);
  return html`<header class="head">
    <${IconButton} icon="menu" label="Show the library" class="narrow-only" onClick=${() => set({ pane: "library" })} />
    <h2 class="title">${title}</h2>
    ${session?.parent && html`<span class="note" title="Branched from another conversation"><${Icon} name="branch" /></span>`}
    ${session && html`<${Menu} label="More for this conversation" items=${[
      ...sessionItems(session),
    ]} />`}
  </header>`;
}

const FIRST = 12; // messages that are drawn at once; earlier ones follow while nothing else is to do

function Messages() {
  const session = useStore((s) => s.session);
  const live = useStore((s) => s.live);
  const editing = useStore((s) => s.editing);
  const scroller = useRef(null);
  const bottom = useRef(true);
  const [away, setAway] = useState(false);
  const messages = session?.messages ?? [];
  const [earliest, setEarliest] = useState(null);
  const from = earliest ?? Math.max(0, messages.length - FIRST);

  // Older messages are added in small portions, so that no portion takes long.
  useLayoutEffect(() => {
    if (!session || from === 0) return undefined;
    const box = scroller.current;
    const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 30));
    let over = false;
    idle(() => {
      if (over) return;
      const height = box.scrollHeight - box.scrollTop;
      setEarliest(Math.max(0, from - 4));
      requestAnimationFrame(() => {
        box.scrollTop = box.scrollHeight - height;
      });
    });
    return () => {
      over = true;
    };
  }, [from, Boolean(session)]);

  // At the bottom the page follows the text; elsewhere it stays where the reader is.
  useLayoutEffect(() => {
    if (bottom.current && scroller.current) scroller.current.scrollTop = scroller.current.scrollHeight;
  });
  useEffect(() => {
    const box = scroller.current;
    const grown = new ResizeObserver(() => {
      if (bottom.current) box.scrollTop = box.scrollHeight;
    });
    grown.observe(box.firstElementChild);
    grown.observe(box);
    return () => grown.disconnect();
  }, []);
  // A new question of one's own is always shown.
  const questions = messages.filter((message) => message.role === "user").length;
  useLayoutEffect(() => {
    if (state.live) toBottom();
  }, [questions]);

  const scrolled = () => {
    const box = scroller.current;
    bottom.current = box.scrollHeight - box.scrollTop - box.clientHeight < 48;
    setAway(!bottom.current);
  };
  const toBottom = () => {
    bottom.current = true;
    scroller.current.scrollTop = scroller.current.scrollHeight;
    setAway(false);
  };
  const lastReply = messages.findLastIndex((message) => message.role === "assistant");
  return html`<div class="scroll" ref=${scroller} onScroll=${scrolled} tabindex="0" role="region" aria-label="Messages">
      <div class="messages">
        <div role="log" aria-label="Conversation" aria-live="off" aria-busy=${live ? "true" : "false"}>
          ${messages.slice(from).map((message) => html`<${Message} key=${message.index} message=${message} busy=${Boolean(live)}
            last=${message.index === lastReply && lastReply === messages.length - 1 && !live} editing=${editing === message.index} />`)}
          <${LiveReply} />
        </div>
        ${session && !live && html`<${After} session=${session} />`}
        ${session && !messages.length && !live && html`<${Suggestions} />`}
      </div>
    </div>
    ${away && html`<button type="button" class="to-bottom" onClick=${toBottom}><${Icon} name="down" />${live ? "Follow the reply" : "To the end"}</button>`}`;
}

/** What stands after the last message: an error, a question that was not answered. */
function After({ session }) {
  const { unsent, failed } = session;
  if (!unsent && !failed) return null;
  return html`<div class="failed">
    <${Icon} name="warn" />
    <div><p>${failed ?? unsent.message ?? "This question was not answered: the server ended."}</p>
      ${unsent?.text && html`<blockquote>${unsent.text}</blockquote>
      <button type="button" class="plain" onClick=${() => actions.send(unsent.text)}><${Icon} name="again" />Ask again</button>
      <button type="button" class="quiet" onClick=${() => { set({ draft: unsent.text }); document.getElementById("composer")?.focus(); }}>Edit first</button>`}
    </div>
  </div>`;
}

/** An empty page: what to do. */
function Beginning() {
  const gathered = useStore((s) => s.gathered);
  const uploads = useStore((s) => s.uploads);
  if (gathered.length || uploads.length)
    return html`<div class="scroll" tabindex="0" role="region" aria-label="Messages"><div class="messages"><${Suggestions} /></div></div>`;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Messages"><div class="beginning">
    <h3>Put in documents, then ask.</h3>
    <p>They are read once and known from then on, today and after a restart. Every answer shows where it comes from. All of it stays on this machine.</p>
    <div class="drop" role="group" aria-label="Add sources">
      <${Icon} name="file" />
      <p><span class="with-mouse">Drop files or a folder anywhere on this page</span><span class="with-finger">Add files from this device</span></p>
      <p class="hint">PDF, Word, Excel, PowerPoint, e-books, web pages, mail, code and plain text</p>
      <div><button type="button" class="primary" onClick=${() => chooseFiles()}>Choose files…</button>
      <button type="button" class="plain" onClick=${() => set({ dialog: { kind: "paste" } })}>Paste text…</button></div>
    </div>
    <p class="hint">Or ask something without documents below.</p>
  </div></div>`;
}

/** What can be asked of the sources, before anything was. */
function Suggestions() {
  const documents = useStore((s) => s.documents);
  const page = useStore((s) => s.page);
  const session = useStore((s) => s.session);
  useStore((s) => s.gathered);
  useStore((s) => s.later);
  const ids = actions.sourceIds();
  if (!ids.length) return null;
  const sources = ids.map((id) => documents.find((document) => document.id === id)).filter(Boolean);
  const ready = sources.filter((document) => document.state === "ready");
  const estimate = ready.reduce((sum, document) => sum + (document.estimate_s ?? 0), 0);
  const tokens = ready.reduce((sum, document) => sum + (document.tokens ?? 0), 0);
  const context = session?.context ?? page?.context ?? Infinity;
  const presets = page?.presets ?? [];
  const reading = useStore((s) => s.reading);
  return html`<div class="suggestions">
    <h3>${ready.length < sources.length && !ready.length ? "Opening the files" : `${plural(ready.length, "source is ready", "sources are ready")}`}</h3>
    ${ready.length > 0 && html`<p>${tokens > context
      ? `${ready.length > 1 ? "Together they have" : "It has"} ${short(tokens)} tokens, and the context holds ${short(context)}. So each question is asked of about ${partsOf(tokens, context)} parts one after another, and the answer is made of what they say${ready.length > 1 ? "; or ask fewer sources at once" : ""}.`
      : isReading(reading) && reading.total
        ? `The model reads ${ready.length > 1 ? "them" : "it"}: ${short(reading.done)} of ${short(reading.total)} tokens${reading.left_s >= 1 ? `, ${time(reading.left_s)} left` : ""}. You can ask already.`
        : reading?.state === "done" ? `${ready.length > 1 ? "They are" : "It is"} read: answers come at once. Ask below, or begin with one of these.`
      : estimate >= 1 ? `The first answer takes about ${time(estimate)} longer, while they are read. After that they are known.` : "Ask below, or begin with one of these."}</p>`}
    <div class="cards">
      <${Card} icon="lines" title="Summarize" text="Choose length, style, focus and language" onClick=${() => set({ dialog: { kind: "summarize" } })} disabled=${!ready.length} />
      <${Card} icon="table" title="Extract a table" text="Name the columns, download CSV or JSON" onClick=${() => set({ dialog: { kind: "table" } })} disabled=${!ready.length} />
      ${ready.length > 1 && html`<${Card} icon="compare" title="Compare two" text="What they share and where they differ" onClick=${() => set({ dialog: { kind: "compare" } })} />`}
      ${presets.map((preset) => html`<${Card} icon=${{ table: "table", summarize: "lines" }[preset.kind] ?? "chat"} title=${shown(preset.title)} text=${shown(preset.description ?? preset.question ?? "")} onClick=${() => usePreset(preset)} disabled=${!ready.length} />`)}
    </div>
  </div>`;
}

export function usePreset(preset) {
  if (preset.kind === "table") set({ dialog: { kind: "table", columns: preset.columns, instruction: preset.instruction ?? preset.question ?? "" } });
  else if (preset.kind === "summarize") set({ dialog: { kind: "summarize", length: preset.length, style: preset.style, focus: preset.focus ?? preset.question ?? "" } });
  else actions.send(preset.question);
}

const Card = ({ icon, title, text, onClick, disabled }) =>
  html`<button type="button" class="card" onClick=${onClick} disabled=${disabled}><${Icon} name=${icon} /><b>${title}</b><span>${text}</span></button>`;
