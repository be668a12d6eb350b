// The keyboard, and the theme. Alt with a letter works everywhere; single keys only outside of fields, and can be switched off.
import * as actions from "./actions.js";
import { keep, stored } from "./settings.js";
import { chooseFiles } from "./sources.js";
import { set, state } from "./store.js";

export const SHORTCUTS = [
  ["Everywhere", [
    ["Alt N", "New conversation"],
    ["Alt A", "Add files"],
    ["Alt S", "Summarize"],
    ["Alt T", "Extract a table"],
    ["Alt C", "Compare two sources"],
    ["Alt K", "Search the library"],
    ["Alt L", "Show or hide the library"],
    ["Alt ,", "Model and settings"],
    ["F6", "To the next part of the page"],
    ["/", "Search"],
    ["?", "This list"],
  ]],
  ["Conversation", [
    ["Enter", "Send"],
    ["Shift Enter", "New line"],
    ["Esc", "Stop the reply, close a source"],
    ["Alt R", "Regenerate the last reply"],
    ["Alt Q", "Edit the last question"],
    ["Alt B", "Branch at the last reply"],
    ["Alt Y", "Copy the last reply"],
    ["Alt I", "To the message field"],
  ]],
  ["Opened source", [
    ["← →", "Previous or next page"],
    ["Home End", "First or last page"],
    ["Alt O", "Picture or text"],
    ["+ −", "Larger or smaller"],
  ]],
];

let single = stored("letters") !== "off";
export const letters = () => single;
export function setLetters(on) {
  single = on;
  keep("letters", on ? "on" : "off");
}

export const themeNow = () =>
  document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

export function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  keep("theme", theme);
  return theme;
}

export const focusOn = (id) => document.getElementById(id)?.focus();

const hasSources = () => actions.askedIds().length > 0;
const last = (role) => state.session?.messages.findLast((message) => message.role === role);

export function toggleViewerMode() {
  const { viewer } = state;
  if (viewer) set({ viewer: { ...viewer, mode: viewer.mode === "text" ? "page" : "text" } });
}

export function zoom(by) {
  const { viewer } = state;
  if (viewer) set({ viewer: { ...viewer, zoom: Math.min(4, Math.max(0.5, (viewer.zoom ?? 1) * by)) } });
}

export async function copy(text, what = "Copied.") {
  try {
    await navigator.clipboard.writeText(text);
    actions.say(what);
    return true;
  } catch {
    actions.notify("The browser does not allow copying here.", { kind: "error" });
    return false;
  }
}

const ALT = {
  KeyN: actions.newConversation,
  KeyA: () => chooseFiles(),
  KeyS: () => hasSources() && set({ dialog: { kind: "summarize" } }),
  KeyT: () => hasSources() && set({ dialog: { kind: "table" } }),
  KeyC: () => actions.askedIds().length > 1 && set({ dialog: { kind: "compare" } }),
  KeyK: toSearch,
  KeyL: () => {
    if (matchMedia("(max-width: 900px)").matches) set({ pane: state.pane ? null : "library" });
    else document.querySelector(".page").classList.toggle("without-library");
  },
  Comma: () => set({ dialog: { kind: "settings" } }),
  KeyR: () => !state.live && last("assistant") && actions.regenerate(),
  KeyQ: () => {
    const message = !state.live && last("user");
    if (message) set({ editing: message.index });
  },
  KeyB: () => !state.live && last("assistant") && actions.branch(last("assistant").index),
  KeyY: () => last("assistant") && copy(last("assistant").text),
  KeyI: () => focusOn("composer"),
  KeyO: toggleViewerMode,
};

function toSearch() {
  if (matchMedia("(max-width: 900px)").matches) set({ pane: "library" });
  setTimeout(() => focusOn("search"));
}

const PARTS = [".library", ".conversation", ".viewer"];

function nextPart(back) {
  const parts = PARTS.map((part) => document.querySelector(part)).filter((part) => part?.offsetParent !== null && part);
  const at = parts.findIndex((part) => part.contains(document.activeElement));
  const part = parts[(at + (back ? parts.length - 1 : 1)) % parts.length];
  const first = part?.matches(".conversation") ? part.querySelector("#composer") : part?.querySelector("input, button");
  first?.focus();
}

const inField = (target) => target.closest?.("input, textarea, select, [contenteditable]");

function pressed(event) {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.altKey && !event.ctrlKey && !event.metaKey && ALT[event.code]) {
    event.preventDefault();
    ALT[event.code]();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "F6") {
    event.preventDefault();
    nextPart(event.shiftKey);
  } else if (event.key === "Escape") {
    if (state.editing !== null) set({ editing: null });
    else if (state.pane) set({ pane: null });
    else if (state.live && !event.target.closest?.(".viewer")) actions.stop();
    else if (state.viewer) actions.closeViewer();
    else return;
    event.preventDefault();
  } else if (!inField(event.target)) {
    if (event.target.closest?.(".viewer") && inViewer(event.key)) event.preventDefault();
    else if (single && event.key === "/") {
      event.preventDefault();
      toSearch();
    } else if (single && event.key === "?") set({ dialog: { kind: "help" } });
  }
}

function inViewer(key) {
  const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[key];
  if (move) actions.turnPage(move);
  else if (key === "+" || key === "=") zoom(1.25);
  else if (key === "-" || key === "\u2212") zoom(0.8);
  else return false;
  return true;
}

export const listen = () => document.addEventListener("keydown", pressed);
