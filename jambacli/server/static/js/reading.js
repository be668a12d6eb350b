// Sources are read by the model as soon as they are there, so that the first question about them is answered at once.
import { get, post, remove } from "./api.js";
import { ahead } from "./settings.js";
import { set, state, watch } from "./store.js";

const path = (id) => `/v1/library/reading/${encodeURIComponent(id)}`;
const active = (reading) => reading?.state === "waiting" || reading?.state === "reading";

let place = null; // of the list that is read: a conversation's name, or "" for one that is yet to begin
let before = "";
let timer = 0;
let turn = 0;

/** What is to be read for what is open, null for nothing. */
function wanted() {
  const { session, name, page } = state;
  if (!state.loaded || !page || page.upstream || !ahead() || (name && !session)) return null;
  const refused = new Set(state.documents.filter((entry) => entry.state === "refused").map((entry) => entry.id));
  const documents = (session ? (session.waiting_documents ?? []) : state.gathered).filter((id) => !refused.has(id));
  if (!documents.length || session?.writable === false) return null;
  if (session) return { session: name, documents };
  const options = Object.keys(state.options).length ? { options: state.options } : {};
  return { documents, ...options, ...(state.system ? { system: state.system } : {}), ...(state.model ? { model: state.model } : {}) };
}

function changed() {
  if (state.live) return;
  const body = wanted();
  const now = body ? JSON.stringify(body) : "";
  if (now === before) return;
  before = now;
  clearTimeout(timer);
  const where = state.name ?? "";
  // A list that is another one now is not read on; that of another conversation is.
  if (state.reading && place === where) {
    if (active(state.reading)) remove(path(state.reading.id)).catch(() => {});
    set({ reading: null });
  }
  if (body) timer = setTimeout(() => begin(body, where), 300);
}

async function begin(body, where) {
  const mine = ++turn;
  place = where;
  try {
    let reading = await post("/v1/library/reading", body);
    while (mine === turn) {
      set({ reading });
      if (!active(reading)) break;
      await new Promise((resolve) => setTimeout(resolve, document.hidden ? 3000 : 400));
      if (mine === turn) reading = await get(path(reading.id));
    }
    if (mine === turn && reading.state === "done") {
      const { documents } = await get("/v1/library/documents");
      set({ documents });
    }
  } catch {
    // It is read when something is asked; that says what is wrong.
    if (mine === turn) set({ reading: null });
  }
}

/** Stop reading; what was read stays known. */
export async function stopReading() {
  const { reading } = state;
  if (!active(reading)) return;
  turn += 1;
  set({ reading: { ...reading, state: "cancelled" } });
  await remove(path(reading.id)).catch(() => {});
}

/** Read now what was stopped. */
export function readNow() {
  before = "";
  set({ reading: null });
  changed();
}

/** How far a source is: {state, done, total, left_s}, null if it is not being read ahead. */
export function readingOf(reading, id) {
  const entry = reading?.documents.find((one) => one.id === id);
  if (!entry) return null;
  const whole = reading.state === "done" || (entry.total > 0 && entry.done >= entry.total);
  return { ...entry, state: whole ? "done" : reading.state === "reading" && !entry.done ? "waiting" : reading.state, left_s: reading.left_s };
}

export const isReading = active;
export const startReading = () => watch(changed);
