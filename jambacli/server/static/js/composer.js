// The field at the foot: the message, what can be done with the sources, and how full the context is.
import { classes, html, useEffect, useLayoutEffect, useRef } from "./view.js";
import * as actions from "./actions.js";
import { Icon, IconButton, Menu } from "./controls.js";
import { usePreset } from "./conversation.js";
import { count, plural, short, shown } from "./format.js";
import { addItems } from "./library.js";
import { addText } from "./sources.js";
import { set, state, useStore } from "./store.js";

const LONG_PASTE = 4000; // characters: longer texts become a source

export function Composer() {
  const session = useStore((s) => s.session);
  const name = useStore((s) => s.name);
  const live = useStore((s) => s.live);
  const draft = useStore((s) => s.draft);
  const picked = useStore((s) => s.picked);
  const loaded = useStore((s) => s.loaded);
  const documents = useStore((s) => s.documents);
  const presets = useStore((s) => s.page?.presets);
  const uploads = useStore((s) => s.uploads);
  useStore((s) => s.gathered);
  useStore((s) => s.later);
  const field = useRef(null);

  useLayoutEffect(() => {
    // Browsers without field-sizing.
    if (CSS.supports("field-sizing", "content") || !field.current) return;
    field.current.style.height = "auto";
    field.current.style.height = `${Math.min(field.current.scrollHeight, 240)}px`;
  }, [draft]);
  useEffect(() => {
    if (matchMedia("(pointer: fine)").matches && !document.querySelector("dialog[open]")) field.current?.focus();
  }, [name, loaded]);

  const ids = actions.askedIds();
  const sources = documents.filter((document) => ids.includes(document.id));
  const ready = sources.some((document) => document.state === "ready");
  const waiting = uploads.some((upload) => !upload.error);
  if (session && session.writable === false)
    return html`<div class="composer closed"><p>${session.reason ?? (session.open_elsewhere ? "Another program has this conversation open." : "This conversation cannot be continued.")}</p></div>`;

  const send = () => draft.trim() && !live && !waiting && actions.send(draft);
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  };
  const pasted = (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (files.length) return; // the page takes them
    if (text.length < LONG_PASTE) return;
    event.preventDefault();
    addText("Pasted text", text);
    actions.notify("The long text became a source.", { label: "Keep it in the message", action: () => set({ draft: state.draft + text }) });
  };
  const many = ids.length > 1;
  return html`<div class="composer">
    <form onSubmit=${(event) => { event.preventDefault(); send(); }}>
      ${picked && html`<div class="chips scope"><span class="hint">Asking</span>${picked.map((id) => html`<span class="chip">${actions.documentName(id) ?? "A source"}<${IconButton} icon="close" label=${`Do not ask ${actions.documentName(id) ?? "it"}`} onClick=${() => actions.pick(id)} /></span>`)}<button type="button" class="quiet small" onClick=${() => set({ picked: null })}>Ask all</button></div>`}
      <textarea id="composer" ref=${field} rows="1" aria-label="Message" placeholder=${placeholder(ids, picked)} value=${draft}
        onInput=${(event) => set({ draft: event.target.value })} onKeyDown=${keys} onPaste=${pasted}></textarea>
      <div class="tools">
        <${Menu} label="Add sources" icon="plus" items=${addItems()} />
        <${Menu} label="Tasks" icon="lines" text="Tasks" class="tasks" items=${[
          { label: "Summarize…", icon: "lines", action: () => set({ dialog: { kind: "summarize" } }), disabled: !ready || live },
          { label: "Extract a table…", icon: "table", action: () => set({ dialog: { kind: "table" } }), disabled: !ready || live },
          many && { label: "Compare two…", icon: "compare", action: () => set({ dialog: { kind: "compare" } }), disabled: !ready || live },
          ...(presets ?? []).map((preset) => ({ label: shown(preset.title), icon: { table: "table", summarize: "lines" }[preset.kind] ?? "chat", action: () => usePreset(preset), disabled: !ready || live })),
        ]} />
        ${many && html`<button type="button" class="quiet" onClick=${() => set({ dialog: { kind: "sources" } })}><${Icon} name="file" />${picked ? `${picked.length} of ${ids.length}` : `All ${ids.length}`}</button>`}
        <${Context} session=${session} sources=${sources} />
        ${live
          ? html`<button type="button" class="send stop" aria-label="Stop (Esc)" title="Stop (Esc)" onClick=${actions.stop}><${Icon} name="stop" /></button>`
          : html`<button type="submit" class="send" aria-label="Send" title=${waiting ? "A file is still being sent" : "Send (Enter)"} disabled=${!draft.trim() || waiting}><${Icon} name="send" /></button>`}
      </div>
    </form>
  </div>`;
}

function placeholder(ids, picked) {
  const asked = picked ?? ids;
  if (!asked.length) return "Ask something";
  if (asked.length === 1) return `Ask about ${actions.documentName(asked[0]) ?? "the source"}`;
  return `Ask about ${plural(asked.length, "source")}`;
}

/** How much of the context is used, and will be with the sources that are not read yet. */
function Context({ session, sources }) {
  const page = useStore((s) => s.page);
  const context = session?.context ?? page?.context;
  if (!context) return html`<span class="context"></span>`;
  const used = session?.used ?? 0;
  const coming = sources.reduce((sum, document) => sum + (actions.isWaiting(document.id) && document.state === "ready" ? (document.tokens ?? 0) : 0), 0);
  const over = used + coming > context;
  const words = `${count(used)} of ${plural(context, "token")} used${coming ? `, ${count(coming)} more with sources that nothing was asked about yet` : ""}${over ? "; the sources are asked in parts" : ""}`;
  return html`<div class=${classes("context", over && "over")} title=${words}>
    <div class="bar" role="meter" aria-label="Context used" aria-valuemin="0" aria-valuemax=${context} aria-valuenow=${Math.min(used, context)} aria-valuetext=${words}>
      <div class="used" style=${{ inlineSize: `${Math.min(100, (100 * used) / context)}%` }}></div>
      <div class="coming" style=${{ inlineSize: `${Math.min(100 - Math.min(100, (100 * used) / context), (100 * coming) / context)}%` }}></div>
    </div>
    <span>${over && coming ? "In parts: " : ""}${short(used + coming)} of ${short(context)}</span>
  </div>`;
}
