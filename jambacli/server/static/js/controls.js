// Small parts that everything is made of: icons, buttons, menus, dialogs, progress.
import { classes, html, useEffect, useId, useLayoutEffect, useRef, useState } from "./view.js";
import { dismiss } from "./actions.js";
import { set, useStore } from "./store.js";

// Drawn on a grid of 20, in lines.
const PATHS = {
  plus: "M10 4v12M4 10h12",
  minus: "M4 10h12",
  compose: "M10 4.500H4.500v11h11V10M15.200 3.200l1.600 1.600-6.300 6.300-2.200.6.6-2.200z",
  close: "M5 5l10 10M15 5L5 15",
  more: "M4.500 10h.01M10 10h.01M15.500 10h.01",
  search: "M9 15A6 6 0 1 0 9 3a6 6 0 0 0 0 12zM13.500 13.500L17 17",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  file: "M5.500 2.500h6l4 4v11h-10zM11.500 2.500v4h4",
  chat: "M3.500 4.500h13v9h-7l-3.500 3v-3h-2.500z",
  copy: "M7.500 7.500h9v9h-9zM12.500 7.500v-4h-9v9h4",
  again: "M16 10a6 6 0 1 1-1.800-4.300M16 3v3.500h-3.500",
  edit: "M4 16l.8-3.500L13 4.300l2.700 2.700-8.200 8.200zM11.500 5.800l2.700 2.700",
  branch: "M6 4v12M6 11c0-4 8-2 8-6.500M4.300 4a1.700 1.700 0 1 0 3.400 0 1.700 1.700 0 0 0-3.400 0zM12.300 4a1.700 1.700 0 1 0 3.400 0 1.700 1.700 0 0 0-3.400 0zM4.300 16a1.700 1.700 0 1 0 3.400 0 1.700 1.700 0 0 0-3.400 0z",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M5 8l5 5 5-5",
  menu: "M3.500 6h13M3.500 10h13M3.500 14h13",
  settings: "M3.500 6.500h7M14.500 6.500h2M3.500 13.500h2M9.500 13.500h7M10.500 6.500a2 2 0 1 0 4 0 2 2 0 0 0-4 0zM5.500 13.500a2 2 0 1 0 4 0 2 2 0 0 0-4 0z",
  sun: "M10 13.500a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7zM10 2v1.500M10 16.500V18M2 10h1.500M16.500 10H18M4.300 4.300l1.100 1.100M14.600 14.600l1.100 1.100M4.300 15.700l1.100-1.100M14.600 5.400l1.100-1.100",
  moon: "M16 11.500A6.500 6.500 0 0 1 8.500 4a6.500 6.500 0 1 0 7.500 7.500z",
  help: "M7.500 7.800a2.600 2.600 0 1 1 3.700 2.300c-.8.4-1.200.9-1.200 1.900M10 14.800v.01",
  trash: "M4 6h12M8 6V3.500h4V6M5.500 6l.8 10.500h7.400L14.500 6",
  download: "M10 3.500v9M6 9l4 4 4-4M4 16.500h12",
  table: "M3.500 4.500h13v11h-13zM3.500 8.500h13M8 8.500v7M12 8.500v7",
  lines: "M4 5h12M4 9h12M4 13h7",
  compare: "M3.500 4.500h5.500v11H3.500zM11 4.500h5.500v11H11z",
  check: "M4.500 10.500l3.500 3.500 7.500-8",
  warn: "M10 3l7.500 13.500h-15zM10 8.500v3.500M10 14.300v.01",
  folder: "M2.500 5h5l1.500 2h8.500v8.500h-15z",
  paste: "M6 4.500H4.500v12.500h11V4.500H14M7 3h6v3H7z",
};

export const Icon = ({ name }) =>
  html`<svg class=${classes("icon", name === "more" && "bold")} viewBox="0 0 20 20" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>`;

/** A button that shows an icon; `label` is its name and its tip. */
export const IconButton = ({ icon, label, class: more, ...rest }) =>
  html`<button type="button" class=${classes("icon-button", more)} aria-label=${label} title=${label} ...${rest}><${Icon} name=${icon} /></button>`;

/** A share of a whole as a bar. `value` null: it is not known how much is left. */
export function Progress({ value, label }) {
  const share = value === null || value === undefined ? null : Math.round(100 * Math.min(1, Math.max(0, value)));
  return html`<div class=${classes("progress", share === null && "unknown")} role="progressbar" aria-label=${label}
    aria-valuemin="0" aria-valuemax="100" aria-valuenow=${share}>
    <div style=${{ inlineSize: share === null ? null : `${share}%` }}></div>
  </div>`;
}

/** A button with a list of commands: [{label, icon, action, danger, disabled}]. Arrows, Home, End, Escape and letters work. */
export function Menu({ label, icon = "more", items, text = null, class: more, id: given }) {
  const id = useId();
  const button = useRef(null);
  const list = useRef(null);
  const [open, setOpen] = useState(false);

  useEffect(() => {
    if (!open) return undefined;
    const menu = list.current;
    menu.showPopover();
    place(button.current, menu);
    menu.querySelector("[role=menuitem]:not([disabled])")?.focus();
    const toggled = (event) => event.newState === "closed" && setOpen(false);
    menu.addEventListener("toggle", toggled);
    return () => menu.removeEventListener("toggle", toggled);
  }, [open]);

  const close = (back = true) => {
    list.current?.hidePopover?.();
    setOpen(false);
    if (back) button.current?.focus();
  };
  const keys = (event) => {
    const all = [...list.current.querySelectorAll("[role=menuitem]:not([disabled])")];
    const at = all.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape" || event.key === "Tab") {
      event.stopPropagation();
      if (event.key === "Escape") event.preventDefault();
      close();
    } else if (to !== undefined) {
      event.preventDefault();
      all[(to + all.length) % all.length]?.focus();
    } else if (event.key.length === 1 && !event.ctrlKey && !event.metaKey) {
      const letter = event.key.toLowerCase();
      [...all.slice(at + 1), ...all].find((item) => item.textContent.trim().toLowerCase().startsWith(letter))?.focus();
    }
  };
  const shown = items.filter(Boolean);
  return html`
    <button type="button" ref=${button} id=${given} class=${classes(text ? "quiet" : "icon-button", more)} aria-label=${text ? null : label} title=${label}
      aria-haspopup="menu" aria-expanded=${open ? "true" : "false"} onClick=${() => (open ? close() : setOpen(true))}>
      <${Icon} name=${icon} />${text}
    </button>
    ${open &&
    html`<div ref=${list} id=${id} class="menu" role="menu" aria-label=${label} popover="auto" onKeyDown=${keys}>
      ${shown.map(
        (item) => html`<button type="button" role="menuitem" tabindex="-1" class=${classes(item.danger && "danger")} disabled=${item.disabled}
          onClick=${() => { close(); item.action(); }}>
          ${item.icon && html`<${Icon} name=${item.icon} />`}<span>${item.label}</span>${item.note && html`<small>${item.note}</small>`}
        </button>`,
      )}
    </div>`}`;
}

/** Put a menu next to its button, within the window. */
function place(button, menu) {
  const at = button.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  const left = Math.max(8, Math.min(at.right - width, innerWidth - width - 8));
  const below = at.bottom + 4;
  const top = below + height > innerHeight - 8 ? Math.max(8, at.top - height - 4) : below;
  menu.style.left = `${at.left + width < innerWidth - 8 ? at.left : left}px`;
  menu.style.top = `${top}px`;
}

/** A modal dialog with a form; `reads`: it is scrolled by the keyboard, since it has no fields. The browser keeps the focus within, and gives it back afterwards. */
export function Dialog({ title, children, actions, onSubmit, onClose = () => set({ dialog: null }), wide = false, lead = null, reads = false }) {
  const dialog = useRef(null);
  const id = useId();
  useLayoutEffect(() => {
    const before = document.activeElement;
    const own = dialog.current;
    own.showModal();
    dialog.current.querySelector("[autofocus], input:checked[type=radio], input:not([type=checkbox], [type=radio]), textarea, select")?.focus();
    return () => {
      own.close(); // while it is modal nothing else can have the focus
      if (before?.isConnected) before.focus();
    };
  }, []);
  const submit = (event) => {
    event.preventDefault();
    onSubmit?.(event);
  };
  return html`<dialog ref=${dialog} class=${classes("dialog", wide && "wide")} aria-labelledby=${id}
    onCancel=${(event) => { event.preventDefault(); onClose(); }} onMouseDown=${(event) => event.target === dialog.current && onClose()}>
    <form method="dialog" onSubmit=${submit}>
      <header><h2 id=${id}>${title}</h2><${IconButton} icon="close" label="Close" onClick=${onClose} /></header>
      <div class="dialog-body" role="group" aria-labelledby=${id} tabindex=${reads ? "0" : null}>${lead && html`<p class="lead">${lead}</p>`}${children}</div>
      ${actions && html`<footer>${actions}</footer>`}
    </form>
  </dialog>`;
}

/** A labelled control; `children` is a function of the control's id. */
export function Field({ label, hint, children }) {
  const id = useId();
  return html`<div class="field"><label for=${id}>${label}</label>${children(id, hint ? `${id}-hint` : null)}
    ${hint && html`<p class="hint" id=${`${id}-hint`}>${hint}</p>`}</div>`;
}

/** One of a few values, as buttons side by side: radio buttons to the keyboard and to screen readers. */
export function Choice({ label, value, options, onChange }) {
  const name = useId();
  return html`<fieldset class="choice"><legend>${label}</legend><div>
    ${options.map(
      ([key, words]) => html`<label><input type="radio" name=${name} value=${key} checked=${value === key} onChange=${() => onChange(key)} /><span>${words}</span></label>`,
    )}
  </div></fieldset>`;
}

/** The messages at the edge, and the two live regions: one polite status, errors as alerts. */
export function Notices() {
  const notices = useStore((s) => s.notices);
  const spoken = useStore((s) => s.spoken);
  const alert = useStore((s) => s.alert);
  return html`
    <div class="notices">
      ${notices.map(
        (notice) => html`<div key=${notice.key} class=${classes("notice", notice.kind)}>
          ${notice.kind === "error" && html`<${Icon} name="warn" />`}<span>${notice.text}</span>
          ${notice.action && html`<button type="button" class="quiet" onClick=${() => { notice.action(); dismiss(notice.key); }}>${notice.label}</button>`}
          <${IconButton} icon="close" label="Dismiss" onClick=${() => dismiss(notice.key)} />
        </div>`,
      )}
    </div>
    <div class="unseen" role="status" aria-live="polite">${spoken}</div>
    <div class="unseen" role="alert">${alert}</div>`;
}
