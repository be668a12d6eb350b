// What the page knows, in one object. Components read it through useStore; only actions change it.
import { useEffect, useState } from "./view.js";

const listeners = new Set();

export const state = {
  page: null, // GET /v1/page/state
  documents: [], // the library
  sessions: [],
  loaded: false, // whether the two lists above have come once
  query: "",
  found: null, // {documents, sessions} of the query
  name: null, // the open conversation
  session: null,
  loading: false, // the open conversation is being fetched
  live: null, // the reply that is being written: {id, kind, text, thought, status, marks}
  gathered: [], // ids of documents for a conversation that does not exist yet
  later: [], // ids of documents for the open conversation, whose reply is being written
  picked: null, // ids of the documents that the next message is about; null: all
  reading: null, // how far the sources are that the model reads before something is asked
  uploads: [], // {key, name, share, error}
  viewer: null, // the opened source
  dialog: null,
  pane: null, // on narrow screens: "library" or null
  editing: null, // index of the message that is being edited
  draft: "", // text of the composer
  offline: false,
  needsKey: false,
  notices: [], // {key, text, kind, action, label}
  spoken: "", // the polite status for screen readers
  alert: "", // errors for screen readers
  options: {}, // settings for the next messages
};

/** Change some fields and tell every component that reads them. */
export function set(patch) {
  Object.assign(state, patch);
  for (const listener of [...listeners]) listener();
}

/** Call a function after every change. */
export const watch = (listener) => listeners.add(listener);

/** A component's view of the store: renders again when the selected value is another one. */
export function useStore(select) {
  const [, again] = useState(0);
  const value = select(state);
  useEffect(() => {
    let last = value;
    const check = () => {
      const now = select(state);
      if (!Object.is(now, last)) {
        last = now;
        again((n) => n + 1);
      }
    };
    check();
    listeners.add(check);
    return () => listeners.delete(check);
  }, [value]);
  return value;
}
