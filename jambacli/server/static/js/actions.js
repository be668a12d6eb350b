// Everything that a person can do. The server keeps the conversations and writes the replies; these calls ask it to, and the
// events of the open conversation change what is shown.
import { documentPath, get, patch, post, remove, sessionPath } from "./api.js";
import { follow } from "./events.js";
import { shown } from "./format.js";
import * as sources from "./sources.js";
import { keep, stored } from "./settings.js";
import { set, state, watch } from "./store.js";

let notices = 0;

/** A short message at the edge of the page. `action` is offered as a button. */
export function notify(text, { kind = "info", label = null, action = null, seconds = 6 } = {}) {
  const key = ++notices;
  set({ notices: [...state.notices, { key, text, kind, label, action }] });
  if (kind === "error") set({ alert: text });
  else say(text);
  if (kind !== "error") setTimeout(() => dismiss(key), seconds * 1000);
}

export const dismiss = (key) => set({ notices: state.notices.filter((notice) => notice.key !== key) });

/** Tell screen readers, politely. */
export const say = (text) => set({ spoken: text });

/** Run a call; its error becomes a notice. Returns whether it went well. */
async function tried(work) {
  try {
    await work();
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    if (error.status === 401) set({ needsKey: true });
    else notify(error.message, { kind: "error" });
    return false;
  }
}

// Start

let kept = "";

export async function start() {
  try {
    // A reload keeps what was gathered and typed for a conversation that has not begun.
    const { gathered, draft } = JSON.parse(stored("begun", "sessionStorage") ?? "{}");
    if (Array.isArray(gathered)) set({ gathered, draft: String(draft ?? "") });
  } catch {
    // It was kept by another version.
  }
  watch(() => {
    const begun = state.name ? "{}" : JSON.stringify({ gathered: state.gathered, draft: state.draft.slice(0, 1e6) });
    if (begun !== kept) keep("begun", (kept = begun), "sessionStorage");
  });
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key) {
    history.replaceState(null, "", location.pathname);
    await tried(() => post("/v1/page/login", { key }));
  }
  await load();
}

export async function load() {
  try {
    const [page, documents, sessions] = await Promise.all([
      get("/v1/page/state"),
      get("/v1/library/documents"),
      get("/v1/library/sessions"),
    ]);
    const known = new Set(documents.documents.map((entry) => entry.id));
    const gathered = state.gathered.filter((id) => known.has(id));
    set({ page, documents: documents.documents, sessions: sessions.sessions, gathered, loaded: true, needsKey: false, offline: false });
    sources.follow();
    await route();
  } catch (error) {
    if (error.status === 401) set({ needsKey: true });
    else {
      set({ offline: true });
      setTimeout(load, 2000);
    }
  }
}

export async function login(key) {
  await post("/v1/page/login", { key });
  await load();
}

/** Open what the address names: #c=NAME, and &d=DOCUMENT&p=PAGE for the source beside it. */
export async function route() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const name = wanted.get("c");
  if (name !== state.name) {
    if (name) await openSession(name, { remember: false });
    else if (state.name) leave();
  }
  const document = wanted.get("d");
  if (document && state.viewer?.id !== document) openDocument(document, Number(wanted.get("p")) || 1);
  else if (!document && state.viewer) set({ viewer: null });
}

function remember(push = true) {
  const parts = [];
  if (state.name) parts.push(`c=${encodeURIComponent(state.name)}`);
  if (state.viewer) parts.push(`d=${encodeURIComponent(state.viewer.id)}`, `p=${state.viewer.page}`);
  const address = parts.length ? `#${parts.join("&")}` : location.pathname;
  if (address !== location.hash) history[push ? "pushState" : "replaceState"](null, "", address);
}

// Conversations

let unfollow = null;

export function leave() {
  unfollow?.();
  unfollow = null;
  set({ name: null, session: null, live: null, editing: null, picked: null, gathered: [], later: [], draft: "" });
}

export function newConversation() {
  leave();
  set({ viewer: null, pane: null });
  remember();
  document.getElementById("composer")?.focus();
}

export async function openSession(name, { remember: keep = true } = {}) {
  unfollow?.();
  set({ name, session: null, live: null, loading: true, editing: null, picked: null, gathered: [], later: [], pane: null, draft: "" });
  if (keep) {
    set({ viewer: null });
    remember();
  }
  const fine = await tried(async () => {
    const from = await fetchSession(name);
    if (state.name === name) attend(name, from);
  });
  if (!fine && state.name === name && !state.session) {
    leave();
    remember(false);
  }
  set({ loading: false });
}

/** Fetch a conversation as it is now. Returns the number of the event to go on from. */
async function fetchSession(name) {
  const session = await get(sessionPath(name));
  if (state.name !== name) return null;
  show(session);
  if (session.running) return session.running.from;
  return session.next ?? null;
}

function show(session) {
  const running = session.running;
  let { messages } = session;
  let live = null;
  if (running) {
    messages = messages.slice(0, running.index ?? messages.length);
    live = newReply(running.generation, running.kind);
  }
  set({ session: { ...session, messages: unchanged(messages) }, live, loading: false });
  listed(session);
}

/** The messages, those that are shown already as the same objects, so that they are not drawn again. */
function unchanged(messages) {
  const shownNow = state.session?.name === state.name ? state.session.messages : [];
  return messages.map((message, i) => (shownNow[i] && JSON.stringify(shownNow[i]) === JSON.stringify(message) ? shownNow[i] : message));
}

const newReply = (id, kind) => ({ id, kind, text: "", thought: "", status: { phase: "waiting" }, marks: [] });

/** Put a session's newest fields into the list. */
function listed(session) {
  const at = state.sessions.findIndex((entry) => entry.name === session.name);
  const { messages, ...rest } = session;
  const entry = { ...rest, messages: Array.isArray(messages) ? messages.length : messages };
  const sessions = [...state.sessions];
  if (at < 0) sessions.unshift(entry);
  else sessions[at] = { ...sessions[at], ...entry };
  set({ sessions });
}

export async function refreshLists() {
  await tried(async () => {
    const [documents, sessions] = await Promise.all([get("/v1/library/documents"), get("/v1/library/sessions")]);
    set({ documents: documents.documents, sessions: sessions.sessions });
  });
}

function attend(name, from) {
  unfollow?.();
  unfollow = follow(name, from, {
    onEvent: (event) => state.name === name && happened(name, event),
    onBreak: () => state.name === name && !state.offline && set({ offline: true, spoken: "The server does not answer." }),
    onBack: async () => {
      const number = await fetchSession(name);
      if (state.offline) {
        set({ offline: false, spoken: "The server is back." });
        const page = await get("/v1/page/state");
        set({ page });
        refreshLists();
      }
      return number;
    },
  });
}

// Pieces of a reply are gathered and shown once a frame.
let pending = null;

function gather(field, delta) {
  if (!pending) {
    pending = { text: "", thought: "" };
    const frame = document.hidden ? (f) => setTimeout(f, 100) : requestAnimationFrame;
    frame(flush);
  }
  pending[field] += delta;
}

function flush() {
  const pieces = pending;
  pending = null;
  if (!pieces || !state.live) return;
  set({ live: { ...state.live, text: state.live.text + pieces.text, thought: state.live.thought + pieces.thought } });
}

function happened(name, event) {
  const { session } = state;
  if (!session) return;
  switch (event.type) {
    case "begin":
      flush();
      set({
        session: { ...session, messages: session.messages.slice(0, event.index), unsent: null },
        live: newReply(event.generation, event.kind),
      });
      break;
    case "message": {
      flush();
      const messages = [...session.messages.slice(0, event.message.index), event.message];
      // Until it is fetched again a new conversation is called by its first question.
      const title = session.title || (event.message.task?.title ?? event.message.text).trim().split("\n")[0].slice(0, 80);
      set({ session: { ...session, title, messages }, live: event.message.role === "assistant" ? null : state.live });
      if (title !== session.title) listed(state.session);
      break;
    }
    case "status": {
      const live = state.live ?? newReply(null, null);
      set({ live: { ...live, status: event } });
      tell(event);
      break;
    }
    case "text":
    case "thought":
      if (!state.live) set({ live: newReply(null, null) });
      gather(event.type, event.delta);
      break;
    case "citations":
      amend({ citations: event.citations });
      break;
    case "stats":
      amend({ stats: event.stats });
      break;
    case "error":
      flush();
      set({ alert: event.message, session: { ...session, failed: event.message } });
      break;
    case "done":
      flush();
      set({ live: null });
      say({ stop: "The answer is complete.", length: "The answer reached its length.", stopped: "Stopped." }[event.finish] ?? "Ended.");
      again(name).then(join);
      break;
    case "changed":
      again(name);
      break;
    case "reset":
      again(name, true);
      break;
    default:
  }
}

/** Make those sources of the conversation that came while a reply was written. */
async function join() {
  const ids = state.later;
  if (!ids.length || !state.session || state.live) return;
  set({ later: [] });
  const waiting = state.session.waiting_documents ?? [];
  await changeSession(state.name, { documents: [...new Set([...waiting, ...ids])] });
}

/** Change the last reply's fields. */
function amend(fields) {
  const { session } = state;
  const last = session.messages.length - 1;
  if (last < 0 || session.messages[last].role !== "assistant") return;
  const messages = [...session.messages];
  messages[last] = { ...messages[last], ...fields };
  set({ session: { ...session, messages } });
}

let asked = 0;

/** Fetch the open conversation again; what another answer has overtaken is left. */
async function again(name, attached = false) {
  const turn = ++asked;
  await tried(async () => {
    const session = await get(sessionPath(name));
    if (state.name !== name || turn !== asked) return;
    const live = state.live;
    // A reply that is shown already goes on as it stands.
    if (session.running && live && !attached) return;
    show(session);
    if (session.running) attend(name, session.running.from);
    const documents = await get("/v1/library/documents");
    set({ documents: documents.documents });
  });
}

let told = 0;

function tell(status) {
  // Not every step: a screen reader would not keep up.
  const now = Date.now();
  if (now - told < 5000 && status.phase === state.phase) return;
  told = now;
  state.phase = status.phase;
  if (status.phase === "reading" && status.total) say(`Reading: ${Math.round((100 * status.done) / status.total)} percent.`);
  else if (status.phase === "writing") say("Writing the answer.");
}

/** The open conversation, or a new one with the gathered documents. */
async function ensureSession() {
  if (state.name) return state.name;
  const options = Object.keys(state.options).length ? { options: state.options } : {};
  const system = state.system ? { system: state.system } : {};
  const model = state.model ? { model: state.model } : {};
  // What was refused has said so; the question is about the others.
  const documents = state.gathered.filter(readable);
  const session = await post("/v1/library/sessions", { documents, ...options, ...system, ...model });
  set({ name: session.name, gathered: [] });
  show({ ...session, messages: session.messages ?? [] });
  attend(session.name, session.next ?? null);
  remember();
  return session.name;
}

/** Start a reply by a route of the conversation. Returns whether it began. */
async function begin(route, body) {
  set({ alert: "" });
  return tried(async () => {
    const name = await ensureSession();
    if (state.session?.failed) set({ session: { ...state.session, failed: null } });
    const { generation, from } = await post(sessionPath(name, route), body);
    // The events bring it too; after this the page shows at once that the server has begun.
    if (state.name === name && !state.live) set({ live: newReply(generation, route.slice(1)) });
    if (from !== undefined && !unfollow) attend(name, from);
  });
}

const readable = (id) => state.documents.some((entry) => entry.id === id && entry.state !== "refused");
const chosen = () => {
  const documents = state.picked?.filter(readable);
  return documents?.length ? { documents } : {};
};

export async function send(text) {
  if (!text.trim() || state.live) return;
  const draft = state.draft;
  set({ draft: "" });
  if (!(await begin("/messages", { text, ...chosen() }))) set({ draft });
}

export const regenerate = () => begin("/regenerate", {});
export const edit = async (index, text) => (await begin("/edit", { index, text })) && set({ editing: null });
export const summarize = (wishes) => begin("/summarize", { ...chosen(), ...wishes });
export const compare = (wishes) => begin("/compare", wishes);
export const table = (wishes) => begin("/table", { ...chosen(), ...wishes });

export const stop = () => tried(() => post(sessionPath(state.name, "/stop"), {}));

export const branch = (index) =>
  tried(async () => {
    const session = await post(sessionPath(state.name, "/branch"), { index });
    listed({ ...session, messages: session.messages ?? [] });
    await openSession(session.name);
    notify("Branched: this conversation goes its own way from here.");
  });

export const selectSibling = (index, sibling) =>
  tried(async () => show(await post(sessionPath(state.name, "/select"), { index, sibling })));

export const changeSession = (name, fields) =>
  tried(async () => {
    const session = await patch(sessionPath(name), fields);
    if (fields.name && state.name === name) {
      await refreshLists();
      await openSession(session.name);
      return;
    }
    listed({ ...session, messages: session.messages ?? [] });
    if (state.name === name && Array.isArray(session.messages) && !state.live) show(session);
    else if (state.name === name) set({ session: { ...state.session, ...fields } });
  });

export const deleteSession = (name) =>
  tried(async () => {
    if (state.name === name) {
      unfollow?.();
      unfollow = null;
    }
    await remove(sessionPath(name));
    set({ sessions: state.sessions.filter((entry) => entry.name !== name) });
    if (state.name === name) {
      leave();
      set({ viewer: null });
      remember(false);
    }
    say("Deleted.");
  });

// Documents

/** Make a document a source of the open conversation, or of the next one. */
export async function attach(id) {
  if (state.name && state.session) {
    if (state.session.documents?.includes(id)) return;
    // A conversation is not changed while a reply is written: the source joins it after that.
    if (state.live) set({ later: state.later.includes(id) ? state.later : [...state.later, id] });
    else await changeSession(state.name, { documents: [...(state.session.waiting_documents ?? []), id] });
  } else if (!state.gathered.includes(id)) set({ gathered: [...state.gathered, id] });
}

export async function detach(id) {
  if (state.picked) set({ picked: state.picked.filter((other) => other !== id) });
  if (state.later.includes(id)) return set({ later: state.later.filter((other) => other !== id) });
  if (state.name && state.session) {
    await changeSession(state.name, { documents: (state.session.waiting_documents ?? []).filter((other) => other !== id) });
  } else set({ gathered: state.gathered.filter((other) => other !== id) });
}

export const renameDocument = (id, name) => tried(async () => sources.known(await patch(documentPath(id), { name })));

export const deleteDocument = (id) =>
  tried(async () => {
    await remove(documentPath(id));
    if (state.viewer?.id === id) closeViewer();
    set({
      documents: state.documents.filter((entry) => entry.id !== id),
      gathered: state.gathered.filter((other) => other !== id),
    });
    if (state.name) again(state.name);
    say("Deleted.");
  });

/** Whether a source can still be taken out: what a message was asked about stays in its conversation. */
export const isWaiting = (id) => !state.session || state.later.includes(id) || (state.session.waiting_documents ?? []).includes(id);

/** The sources of what is open, in order. */
export function sourceIds() {
  return state.session ? [...new Set([...(state.session.documents ?? []), ...state.later])] : state.gathered;
}

/** Those that the next message can be about: what cannot be read is left out. */
export const askedIds = () => sourceIds().filter((id) => state.documents.find((entry) => entry.id === id)?.state !== "refused");

export function pick(id) {
  const all = askedIds();
  const now = state.picked ?? all;
  const next = now.includes(id) ? now.filter((other) => other !== id) : all.filter((other) => other === id || now.includes(other));
  set({ picked: next.length === all.length || !next.length ? null : next });
}

// The opened source

let opening = 0;

/** Open a document at a page. `mark`: {quote, by} of the words to look for there. */
export async function openDocument(id, page = 1, mark = null, number = null) {
  const turn = ++opening;
  const same = state.viewer?.id === id;
  set({
    viewer: { ...(same ? state.viewer : { id, mode: null }), id, page, mark, number, place: null, searching: Boolean(mark?.quote), error: null },
    pane: null,
  });
  remember(!same);
  const stale = () => turn !== opening || state.viewer?.id !== id;
  let place = null;
  try {
    if (mark?.quote) {
      place = await get(documentPath(id, `/locate?page=${page}&quote=${encodeURIComponent(mark.quote)}`));
      if (stale()) return;
      if (place.found && place.page) page = place.page;
    } else if (mark) place = { found: false };
    if (stale()) return;
    set({ viewer: { ...state.viewer, page, place, searching: false } });
    const text = await get(documentPath(id, `/pages/${page}`));
    if (stale()) return;
    set({ viewer: { ...state.viewer, content: text } });
    if (mark) say(place?.found ? `${text.label ?? `Page ${page}`}: the words are marked.` : "The words stand nowhere on this page; nothing is marked.");
  } catch (error) {
    if (stale()) return;
    set({ viewer: { ...state.viewer, searching: false, error: error.status === 404 ? "This document is not in the library any more." : error.message } });
  }
}

export function turnPage(by) {
  const { viewer } = state;
  const pages = viewer?.content?.count ?? state.documents.find((entry) => entry.id === viewer?.id)?.pages ?? 1;
  const page = Math.min(pages, Math.max(1, (viewer?.page ?? 1) + by));
  if (viewer && page !== viewer.page) openDocument(viewer.id, page);
}

export function closeViewer() {
  if (!state.viewer) return;
  const number = state.viewer.number;
  set({ viewer: null });
  remember(false);
  (number ? document.getElementById(number) : document.getElementById("composer"))?.focus();
}

// Search, over names and texts of the whole library

let searches = 0;
let timer = 0;

export function search(query) {
  set({ query });
  clearTimeout(timer);
  if (!query.trim()) {
    searches += 1;
    set({ found: null });
    return;
  }
  timer = setTimeout(async () => {
    const turn = ++searches;
    await tried(async () => {
      const q = encodeURIComponent(query.trim());
      const [documents, sessions] = await Promise.all([get(`/v1/library/documents?q=${q}`), get(`/v1/library/sessions?q=${q}`)]);
      if (turn !== searches) return;
      set({ found: { documents: documents.documents, sessions: sessions.sessions } });
      say(`${documents.documents.length} documents and ${sessions.sessions.length} conversations found.`);
    });
  }, 180);
}

export const documentName = (id) => {
  const document = state.documents.find((entry) => entry.id === id);
  return document ? shown(document.name) : null;
};
