// Documents: what is dropped or pasted becomes a source; files are sent one after another and then followed until they are read.
import { ApiError, documentPath, get, post, upload } from "./api.js";
import { shown, size } from "./format.js";
import { set, state } from "./store.js";
import { attach, notify, say } from "./actions.js";

let uploads = 0;
let queue = Promise.resolve();

const change = (key, patch) =>
  set({ uploads: state.uploads.map((entry) => (entry.key === key ? { ...entry, ...patch } : entry)) });

export const dismissUpload = (key) => set({ uploads: state.uploads.filter((entry) => entry.key !== key) });

/** Add files as sources of the open conversation, or of the next one. */
export function addFiles(files) {
  const limit = state.page?.limits?.max_file_bytes ?? Infinity;
  for (const { file, name } of files) {
    const key = ++uploads;
    const entry = { key, name: shown(name), share: 0, error: null };
    if (file.size > limit) {
      entry.error = `${size(file.size)}: files may have up to ${size(limit)}.`;
      set({ uploads: [...state.uploads, entry], alert: `${entry.name}: ${entry.error}` });
      continue;
    }
    set({ uploads: [...state.uploads, entry] });
    queue = queue.then(() => send(key, file, name));
  }
}

async function send(key, file, name) {
  if (!state.uploads.some((entry) => entry.key === key)) return; // taken back while it waited
  try {
    const document = await upload(file, name, (share) => change(key, { share }));
    dismissUpload(key);
    known(document);
    if (document.state !== "extracting") finished(document);
    await attach(document.id);
    follow();
  } catch (error) {
    change(key, { error: error.message });
    set({ alert: `${shown(name)}: ${error.message}` });
    if (error instanceof ApiError && error.status === 401) set({ needsKey: true });
  }
}

/** A pasted text as a source. */
export async function addText(name, text) {
  try {
    const document = await post("/v1/library/documents", { name, text });
    known(document);
    await attach(document.id);
    follow();
    return document;
  } catch (error) {
    notify(error.message, { kind: "error" });
    return null;
  }
}

/** Put a document's newest description into the library. */
export function known(document) {
  const others = state.documents.filter((entry) => entry.id !== document.id);
  const at = state.documents.findIndex((entry) => entry.id === document.id);
  others.splice(at < 0 ? 0 : at, 0, document);
  set({ documents: others });
}

// A document whose tokens are not counted yet has not been looked at to the end.
const unfinished = (entry) => entry.state === "extracting" || (entry.state === "ready" && entry.tokens === null);

let following = false;

/** Ask again about documents that are being extracted or counted, until none is left. */
export async function follow() {
  if (following) return;
  following = true;
  let pause = 150;
  const counted = new Map();
  try {
    for (;;) {
      const waiting = state.documents.filter((entry) => unfinished(entry) && (counted.get(entry.id) ?? 0) < 40);
      if (!waiting.length) return;
      await new Promise((resolve) => setTimeout(resolve, document.hidden ? 2000 : pause));
      pause = Math.min(1000, pause * 1.4);
      for (const { id } of waiting) {
        try {
          const now = await get(documentPath(id));
          if (now.state !== "extracting") counted.set(id, (counted.get(id) ?? 0) + 1);
          if (now.state === "extracting" || !unfinished(now)) finished(now);
          known(now);
        } catch (error) {
          if (error.status === 404) set({ documents: state.documents.filter((entry) => entry.id !== id) });
        }
      }
    }
  } finally {
    following = false;
  }
}

function finished(document) {
  if (document.state === "refused") set({ alert: `${shown(document.name)}: ${document.message}` });
  else if (document.state === "ready") say(`${shown(document.name)} is ready.`);
}

/** The files of a drop, with those within folders. Names have no paths. */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, name: file.name }));
  const files = [];
  for (const entry of entries) await walk(entry, files);
  return files;
}

const MOST_FILES = 500;

async function walk(entry, files) {
  if (files.length >= MOST_FILES || entry.name.startsWith(".")) return;
  if (entry.isFile) {
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    if (file) files.push({ file, name: file.name });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (!some.length) return;
    for (const inner of some) await walk(inner, files);
  }
}

/** Let a person choose files or a folder. */
export function chooseFiles(folder = false) {
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  input.webkitdirectory = folder;
  input.onchange = () => addFiles([...input.files].filter((file) => !file.name.startsWith(".")).map((file) => ({ file, name: file.name })));
  input.click();
}
