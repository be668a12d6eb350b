// The stream of a conversation's events: read from a number on, and again after a break, so that nothing is lost.
import { sessionPath } from "./api.js";

/** Split a stream of bytes into server-sent events: {id, data}. */
export async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest = (rest + value).replaceAll("\r\n", "\n");
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const event = parse(rest.slice(0, end));
        rest = rest.slice(end + 2);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  let id = null;
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    else if (line.startsWith("id:")) id = Number(line.slice(3));
  }
  if (!data.length) return null;
  try {
    return { id, data: JSON.parse(data.join("\n")) };
  } catch {
    return null;
  }
}

/**
 * Follow a conversation until stopped. `onEvent` gets every event once; `onBreak` is called when the connection is lost and
 * `onBack` (awaited; it returns the number to go on from) when the server answers again.
 * A hidden page lets go of its connection, because a browser keeps only six to one server.
 */
export function follow(name, from, { onEvent, onBreak, onBack }) {
  let stopped = false;
  let next = from ?? null;
  let abort = new AbortController();

  const visible = () =>
    new Promise((resolve) => {
      if (!document.hidden) return resolve();
      const listen = () => {
        if (document.hidden) return;
        document.removeEventListener("visibilitychange", listen);
        resolve();
      };
      document.addEventListener("visibilitychange", listen);
    });
  const hide = () => document.hidden && abort.abort();
  document.addEventListener("visibilitychange", hide);

  (async () => {
    let tries = 0;
    let broken = false;
    while (!stopped) {
      await visible();
      if (stopped) return;
      abort = new AbortController();
      let refused = false;
      try {
        if (broken || tries) {
          const number = await onBack();
          if (stopped) return;
          if (number !== undefined && number !== null) next = number;
          broken = false;
        }
        const response = await fetch(sessionPath(name, next === null ? "/events" : `/events?from=${next}`), {
          signal: abort.signal,
          headers: { Accept: "text/event-stream" },
          cache: "no-store",
        });
        refused = response.status === 404 || response.status === 401;
        if (!response.ok) throw new Error(String(response.status));
        tries = 0;
        for await (const { id, data } of readEvents(response.body)) {
          if (stopped) return;
          if (Number.isFinite(id)) next = id + 1;
          onEvent(data, id);
        }
      } catch {
        if (stopped || refused) return;
      }
      if (document.hidden) continue;
      // A stream that ended is opened again at once; one that cannot be opened, with growing pauses.
      tries += 1;
      if (tries > 1) {
        broken = true;
        onBreak();
      }
      await new Promise((resolve) => setTimeout(resolve, Math.min(4000, 150 * 2 ** tries)));
    }
  })();

  return () => {
    stopped = true;
    document.removeEventListener("visibilitychange", hide);
    abort.abort();
  };
}
