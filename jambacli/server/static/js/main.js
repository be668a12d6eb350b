// The page: three parts side by side, files that are dropped anywhere, the keyboard.
import { classes, html, render, useEffect, useState } from "./view.js";
import * as actions from "./actions.js";
import { Notices } from "./controls.js";
import { Conversation } from "./conversation.js";
import { Dialogs } from "./dialogs.js";
import { listen } from "./keys.js";
import { Library } from "./library.js";
import { startReading } from "./reading.js";
import { addFiles, droppedFiles } from "./sources.js";
import { set, useStore } from "./store.js";
import { Viewer } from "./viewer.js";

function Page() {
  const pane = useStore((s) => s.pane);
  const viewing = useStore((s) => Boolean(s.viewer));
  return html`
    <a class="skip" href="#conversation" onClick=${(event) => { event.preventDefault(); document.getElementById("composer")?.focus(); }}>To the message field</a>
    <div class=${classes("page", pane && "with-library", viewing && "with-viewer")}>
      <${Library} />
      <div class="shade" onClick=${() => set({ pane: null })}></div>
      <${Conversation} />
      <${Viewer} />
    </div>
    <${DropTarget} />
    <${Dialogs} />
    <${Notices} />`;
}

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

/** The whole window takes files. */
function DropTarget() {
  const [over, setOver] = useState(false);
  useEffect(() => {
    let depth = 0;
    const listeners = {
      dragenter: (event) => {
        if (!hasFiles(event)) return;
        event.preventDefault();
        depth += 1;
        setOver(true);
      },
      dragover: (event) => hasFiles(event) && event.preventDefault(),
      dragleave: (event) => {
        if (!hasFiles(event)) return;
        depth = Math.max(0, depth - 1);
        if (!depth) setOver(false);
      },
      drop: async (event) => {
        if (!hasFiles(event)) return;
        event.preventDefault();
        depth = 0;
        setOver(false);
        addFiles(await droppedFiles(event.dataTransfer));
      },
      paste: (event) => {
        const files = [...(event.clipboardData?.files ?? [])];
        if (!files.length) return;
        event.preventDefault();
        addFiles(files.map((file) => ({ file, name: file.name || "Pasted file" })));
      },
    };
    for (const [name, listener] of Object.entries(listeners)) addEventListener(name, listener);
    return () => {
      for (const [name, listener] of Object.entries(listeners)) removeEventListener(name, listener);
    };
  }, []);
  return over ? html`<div class="dropping" aria-hidden="true"><p>Drop to add as sources</p></div>` : null;
}

listen();
addEventListener("popstate", actions.route);
addEventListener("hashchange", actions.route);
// What another tab or the terminal did meanwhile.
document.addEventListener("visibilitychange", () => !document.hidden && actions.refreshLists());
// The modules have just been run; to draw is a task of its own, so that neither is long.
setTimeout(() => {
  render(html`<${Page} />`, document.getElementById("app"));
  startReading();
  actions.start();
});
