// The dialogs: questions of one line, tasks (summary, comparison, table), pasted text, settings, shortcuts, the key.
import { classes, html, useState } from "./view.js";
import * as actions from "./actions.js";
import { Choice, Dialog, Field, Icon, IconButton } from "./controls.js";
import { shown } from "./format.js";
import { SHORTCUTS, letters, setLetters } from "./keys.js";
import { ahead, setAhead } from "./settings.js";
import { addText } from "./sources.js";
import { set, state, useStore } from "./store.js";

const close = () => set({ dialog: null });

/** Ask for a line of text; null if it is not given. */
export const ask = (question) => new Promise((resolve) => set({ dialog: { kind: "ask", ...question, resolve } }));
/** Ask before something is lost. */
export const confirm = (question) => new Promise((resolve) => set({ dialog: { kind: "confirm", ...question, resolve } }));

export function Dialogs() {
  const dialog = useStore((s) => s.dialog);
  const needsKey = useStore((s) => s.needsKey);
  if (needsKey) return html`<${Login} />`;
  if (!dialog) return null;
  const Kind = { ask: Ask, confirm: Confirm, paste: Paste, summarize: Summarize, compare: Compare, table: Table, settings: Settings, help: Help, sources: PickSources }[dialog.kind];
  return html`<${Kind} key=${dialog.kind} ...${dialog} />`;
}

function Ask({ title, label, value = "", resolve }) {
  const [text, setText] = useState(value);
  const end = (answer) => {
    close();
    resolve(answer);
  };
  return html`<${Dialog} title=${title} onClose=${() => end(null)} onSubmit=${() => end(text.trim() || null)} actions=${html`
      <button type="button" class="plain" onClick=${() => end(null)}>Cancel</button><button type="submit" class="primary">Save</button>`}>
    <${Field} label=${label}>${(id) => html`<input id=${id} value=${text} maxlength="200" onInput=${(e) => setText(e.target.value)} onFocus=${(e) => e.target.select()} />`}<//>
  <//>`;
}

function Confirm({ title, text, yes, resolve }) {
  const end = (answer) => {
    close();
    resolve(answer);
  };
  return html`<${Dialog} title=${title} onClose=${() => end(false)} onSubmit=${() => end(true)} actions=${html`
      <button type="button" class="plain" onClick=${() => end(false)}>Cancel</button><button type="submit" class="primary danger" autofocus>${yes}</button>`}>
    <p>${text}</p>
  <//>`;
}

function Paste() {
  const [name, setName] = useState("");
  const [text, setText] = useState("");
  const submit = () => {
    close();
    addText(name.trim() || "Pasted text", text);
  };
  return html`<${Dialog} wide title="Paste text as a source" onSubmit=${submit} actions=${html`
      <button type="button" class="plain" onClick=${close}>Cancel</button><button type="submit" class="primary" disabled=${!text.trim()}>Add</button>`}>
    <${Field} label="Name">${(id) => html`<input id=${id} value=${name} maxlength="200" placeholder="Pasted text" onInput=${(e) => setName(e.target.value)} />`}<//>
    <${Field} label="Text">${(id) => html`<textarea id=${id} rows="12" value=${text} onInput=${(e) => setText(e.target.value)}></textarea>`}<//>
  <//>`;
}

/** Which sources a task is about, in words. */
function about() {
  const ids = state.picked ?? actions.askedIds();
  if (!ids.length) return null;
  if (ids.length === 1) return `About “${actions.documentName(ids[0]) ?? "a source"}”.`;
  return `About ${ids.length} sources.`;
}

function Summarize({ length: givenLength = "medium", style: givenStyle = "prose", focus: givenFocus = "" }) {
  const [length, setLength] = useState(givenLength);
  const [style, setStyle] = useState(givenStyle);
  const [focus, setFocus] = useState(givenFocus);
  const [language, setLanguage] = useState("");
  const submit = () => {
    close();
    const wishes = { length, style };
    if (focus.trim()) wishes.focus = focus.trim();
    if (language.trim()) wishes.language = language.trim();
    actions.summarize(wishes);
  };
  return html`<${Dialog} title="Summarize" lead=${about()} onSubmit=${submit} actions=${html`
      <button type="button" class="plain" onClick=${close}>Cancel</button><button type="submit" class="primary">Summarize</button>`}>
    <${Choice} label="Length" value=${length} onChange=${setLength} options=${[["short", "Short"], ["medium", "Medium"], ["long", "Long"]]} />
    <${Choice} label="Style" value=${style} onChange=${setStyle} options=${[["prose", "Prose"], ["bullets", "Bullet points"]]} />
    <${Field} label="Focus" hint="What to pay most attention to. May stay empty.">${(id, hint) => html`<input id=${id} aria-describedby=${hint} value=${focus} maxlength="500" onInput=${(e) => setFocus(e.target.value)} />`}<//>
    <${Field} label="Language" hint="Empty: the language of the sources.">${(id, hint) => html`<input id=${id} aria-describedby=${hint} value=${language} maxlength="40" list="languages" onInput=${(e) => setLanguage(e.target.value)} />`}<//>
    <datalist id="languages">${["Arabic", "Dutch", "English", "French", "German", "Hebrew", "Italian", "Portuguese", "Spanish"].map((name) => html`<option value=${name} />`)}</datalist>
  <//>`;
}

function Compare() {
  const ids = actions.askedIds();
  const [first, setFirst] = useState((state.picked ?? ids)[0]);
  const [second, setSecond] = useState((state.picked ?? ids)[1] ?? ids.find((id) => id !== first));
  const [focus, setFocus] = useState("");
  const submit = () => {
    close();
    actions.compare({ documents: [first, second], ...(focus.trim() ? { focus: focus.trim() } : {}) });
  };
  const options = (chosen) => ids.map((id) => html`<option value=${id} selected=${id === chosen}>${actions.documentName(id) ?? "A source"}</option>`);
  return html`<${Dialog} title="Compare two sources" onSubmit=${submit} actions=${html`
      <button type="button" class="plain" onClick=${close}>Cancel</button><button type="submit" class="primary" disabled=${first === second}>Compare</button>`}>
    <${Field} label="First">${(id) => html`<select id=${id} onChange=${(e) => setFirst(e.target.value)}>${options(first)}</select>`}<//>
    <${Field} label="Second">${(id) => html`<select id=${id} onChange=${(e) => setSecond(e.target.value)}>${options(second)}</select>`}<//>
    <${Field} label="Focus" hint="What to compare, such as “payment terms”. May stay empty.">${(id, hint) => html`<input id=${id} aria-describedby=${hint} value=${focus} maxlength="500" onInput=${(e) => setFocus(e.target.value)} />`}<//>
  <//>`;
}

const TYPES = ["text", "number", "date", "yes/no"];

function Table({ columns: given = null, instruction: givenInstruction = "" }) {
  const [columns, setColumns] = useState((given ?? [{}, {}]).map((column) => ({ name: "", type: "text", description: "", ...column })));
  const [instruction, setInstruction] = useState(givenInstruction);
  const change = (at, fields) => setColumns(columns.map((column, i) => (i === at ? { ...column, ...fields } : column)));
  const named = columns.filter((column) => column.name.trim());
  const names = named.map((column) => column.name.trim().toLowerCase());
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  const submit = () => {
    close();
    actions.table({
      columns: named.map(({ name, type, description }) => ({ name: name.trim(), type, ...(description.trim() ? { description: description.trim() } : {}) })),
      ...(instruction.trim() ? { instruction: instruction.trim() } : {}),
    });
  };
  const presets = (state.page?.presets ?? []).filter((preset) => preset.kind === "table");
  return html`<${Dialog} wide title="Extract a table" lead=${about()} onSubmit=${submit} actions=${html`
      ${twice && html`<p class="hint error" role="status">Two columns are named “${shown(twice)}”.</p>`}
      <button type="button" class="plain" onClick=${close}>Cancel</button>
      <button type="submit" class="primary" disabled=${!named.length || Boolean(twice)}>Extract</button>`}>
    ${presets.length > 0 && html`<div class="chips" role="group" aria-label="Columns of a preset">${presets.map((preset) => html`<button type="button" class="chip"
      onClick=${() => { setColumns(preset.columns.map((column) => ({ description: "", ...column }))); setInstruction(preset.question ?? preset.instruction ?? ""); }}>${preset.title}</button>`)}</div>`}
    <fieldset class="columns"><legend>Columns</legend>
      ${columns.map((column, i) => html`<div class="column" key=${i}>
        <input aria-label=${`Name of column ${i + 1}`} placeholder=${["Party", "Amount", "Due date"][i] ?? "Name"} value=${column.name} maxlength="60" onInput=${(e) => change(i, { name: e.target.value })} />
        <select aria-label=${`Type of column ${i + 1}`} onChange=${(e) => change(i, { type: e.target.value })}>${TYPES.map((type) => html`<option value=${type} selected=${type === column.type}>${type}</option>`)}</select>
        <input class="wide" aria-label=${`What belongs in column ${i + 1}`} placeholder="What belongs here (may stay empty)" value=${column.description} maxlength="300" onInput=${(e) => change(i, { description: e.target.value })} />
        <${IconButton} icon="close" label=${`Remove column ${i + 1}`} disabled=${columns.length === 1} onClick=${() => setColumns(columns.filter((_, other) => other !== i))} />
      </div>`)}
      <button type="button" class="quiet" disabled=${columns.length >= 24} onClick=${() => setColumns([...columns, { name: "", type: "text", description: "" }])}><${Icon} name="plus" />Add a column</button>
    </fieldset>
    <${Field} label="Rows" hint="What makes a row, such as “one for each invoice”. May stay empty.">${(id, hint) => html`<input id=${id} aria-describedby=${hint} value=${instruction} maxlength="500" onInput=${(e) => setInstruction(e.target.value)} />`}<//>
  <//>`;
}

/** The sources that the next message is about. */
function PickSources() {
  const picked = useStore((s) => s.picked);
  const ids = actions.askedIds();
  return html`<${Dialog} title="Ask these sources" onSubmit=${close} actions=${html`
      <button type="button" class="plain" onClick=${() => set({ picked: null })}>All</button><button type="submit" class="primary">Done</button>`}>
    <div class="checks">${ids.map((id) => html`<label><input type="checkbox" checked=${!picked || picked.includes(id)} onChange=${() => actions.pick(id)} /><span>${actions.documentName(id) ?? "A source"}</span></label>`)}</div>
  <//>`;
}

const number = (text) => (text === "" || Number.isNaN(Number(text)) ? null : Number(text));

function Settings() {
  const page = useStore((s) => s.page);
  const session = useStore((s) => s.session);
  const now = { ...(session ? session.options : state.options) };
  const [options, setOptions] = useState(now);
  const [system, setSystem] = useState((session ? session.system : state.system) ?? "");
  const [reads, setReads] = useState(ahead());
  const [model, setModel] = useState(state.model ?? session?.model ?? page?.model);
  const change = (name, value) => setOptions({ ...options, [name]: value });
  const models = page?.models ?? [];
  const served = models.find((entry) => entry.name === model) ?? models[0];
  const submit = () => {
    close();
    setAhead(reads);
    const fields = { options };
    if (session) {
      if (system !== (session.system ?? "")) fields.system = system;
      actions.changeSession(session.name, fields);
    }
    const kept = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== null && value !== undefined));
    set({ options: kept, system, model: models.length > 1 ? model : null });
  };
  const figure = (name, label, hint, more) => html`<${Field} label=${label} hint=${hint}>${(id, described) => html`<input id=${id} type="number" inputmode="decimal" aria-describedby=${described}
    placeholder="as the model" value=${options[name] ?? ""} onInput=${(e) => change(name, number(e.target.value))} ...${more} />`}<//>`;
  return html`<${Dialog} wide title="Model and settings" lead=${session ? "For the next replies of this conversation." : "For the next conversation."} onSubmit=${submit} actions=${html`
      <button type="button" class="plain" onClick=${close}>Cancel</button><button type="submit" class="primary">Save</button>`}>
    ${models.length > 1 && !session
      ? html`<${Field} label="Model">${(id) => html`<select id=${id} onChange=${(e) => setModel(e.target.value)}>${models.map((entry) => html`<option value=${entry.name} selected=${entry.name === model}>${shown(entry.name)}${entry.loaded ? "" : " (not loaded)"}</option>`)}</select>`}<//>`
      : html`<p class="fact"><span>Model</span><b>${shown(session?.model ?? page?.model ?? "")}</b></p>`}
    <div class="checks">
      <label><input type="checkbox" checked=${options.citations !== false} onChange=${(e) => change("citations", e.target.checked)} /><span>Cite the sources</span></label>
      ${!page?.upstream && html`<label><input type="checkbox" checked=${reads} onChange=${(e) => setReads(e.target.checked)} /><span>Read sources as soon as they are added</span></label>`}
      ${served?.thinks && html`<label><input type="checkbox" checked=${options.think !== false} onChange=${(e) => change("think", e.target.checked)} /><span>Think before answering</span></label>`}
    </div>
    <div class="grid">
      ${figure("temperature", "Temperature", "0: the likeliest word each time.", { min: 0, max: 5, step: 0.1 })}
      ${figure("max_tokens", "Longest reply", "In tokens.", { min: 1, step: 1 })}
      ${figure("top_p", "Top p", null, { min: 0, max: 1, step: 0.01 })}
      ${figure("seed", "Seed", null, { min: 0, step: 1 })}
    </div>
    <${Field} label="Instructions" hint="They stand before everything else; a change makes the sources new to the model.">${(id, hint) => html`<textarea id=${id} aria-describedby=${hint} rows="3" value=${system} onInput=${(e) => setSystem(e.target.value)}></textarea>`}<//>
    <p class="hint version">${page ? `jamba ${page.version}` : ""}${page?.upstream ? ` · in front of ${shown(page.upstream)}` : ""}${page && !page.kept ? " · nothing is kept after the server ends" : ""}</p>
  <//>`;
}

function Help() {
  const [single, setSingle] = useState(letters());
  return html`<${Dialog} wide reads title="Keyboard" onSubmit=${close} actions=${html`
      <label class="check"><input type="checkbox" checked=${single} onChange=${(e) => { setLetters(e.target.checked); setSingle(e.target.checked); }} /><span>Shortcuts of a single key</span></label>
      <button type="submit" class="primary">Done</button>`}>
    <div class="shortcuts">${SHORTCUTS.map(
      ([title, rows]) => html`<section><h3>${title}</h3><dl>${rows.map(([keys, words]) => html`<div><dt>${words}</dt><dd>${keys.split(" ").map((key) => html`<kbd>${key}</kbd>`)}</dd></div>`)}</dl></section>`,
    )}</div>
  <//>`;
}

function Login() {
  const [key, setKey] = useState("");
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const submit = async () => {
    setBusy(true);
    try {
      await actions.login(key.trim());
    } catch (problem) {
      setError(problem.message);
    }
    setBusy(false);
  };
  return html`<${Dialog} title="Log in" lead="This server asks for its key. It stays in this browser." onClose=${() => {}} onSubmit=${submit} actions=${html`
      <button type="submit" class=${classes("primary")} disabled=${!key.trim() || busy}>Log in</button>`}>
    <${Field} label="Key">${(id) => html`<input id=${id} type="password" autocomplete="current-password" value=${key} onInput=${(e) => setKey(e.target.value)} />`}<//>
    ${error && html`<p class="hint error" role="alert">${error}</p>`}
  <//>`;
}
