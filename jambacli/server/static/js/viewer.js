// The opened source beside the conversation: a page as a picture with boxes around the quoted words, or its text.
import { classes, html, useEffect, useLayoutEffect, useRef, useState } from "./view.js";
import * as actions from "./actions.js";
import { documentPath } from "./api.js";
import { Icon, IconButton } from "./controls.js";
import { shown, unitsAt } from "./format.js";
import { toggleViewerMode, zoom } from "./keys.js";
import { set, state, useStore } from "./store.js";

export function Viewer() {
  const viewer = useStore((s) => s.viewer);
  const document = useStore((s) => s.documents.find((entry) => entry.id === s.viewer?.id));
  const section = useRef(null);
  const id = viewer?.id;
  const by = viewer?.number;
  useEffect(() => {
    if (id) section.current?.focus({ preventScroll: true });
  }, [id, by]);
  if (!viewer) return null;
  const name = document ? shown(document.name) : "Source";
  const { content } = viewer;
  const pictures = content ? content.picture : document?.pictures;
  const mode = pictures && viewer.mode !== "text" ? "page" : "text";
  const pages = content?.count ?? document?.pages ?? 1;
  return html`<aside class="viewer" ref=${section} tabindex="-1" aria-label=${`Source: ${name}`}>
    <header>
      <h2 class="title" title=${name}>${name}</h2>
      ${pictures && html`<button type="button" class="quiet small" aria-pressed=${mode === "text" ? "true" : "false"} onClick=${toggleViewerMode}>Text</button>`}
      ${mode === "page" && html`<${IconButton} icon="minus" label="Smaller (−)" onClick=${() => zoom(0.8)} /><button type="button" class="quiet small zoom" title="Fit the width" aria-label=${`${Math.round(100 * (viewer.zoom ?? 1))}%: fit the width`} onClick=${() => set({ viewer: { ...state.viewer, zoom: 1 } })}>${Math.round(100 * (viewer.zoom ?? 1))}%</button><${IconButton} icon="plus" label="Larger (+)" onClick=${() => zoom(1.25)} />`}
      <${IconButton} icon="close" label="Close the source (Esc)" onClick=${actions.closeViewer} />
    </header>
    <${Quote} viewer=${viewer} />
    ${viewer.error
      ? html`<p class="empty centred">${viewer.error}</p>`
      : mode === "page"
        ? html`<${Picture} key=${id} viewer=${viewer} name=${name} />`
        : html`<${Text} viewer=${viewer} />`}
    <footer>
      <${IconButton} icon="left" label="Previous page (←)" disabled=${viewer.page <= 1} onClick=${() => actions.turnPage(-1)} />
      <${PageNumber} page=${viewer.page} pages=${pages} unit=${document?.unit ?? "page"} label=${content?.label} />
      <${IconButton} icon="right" label="Next page (→)" disabled=${viewer.page >= pages} onClick=${() => actions.turnPage(1)} />
    </footer>
  </aside>`;
}

function PageNumber({ page, pages, unit, label }) {
  const go = (event) => {
    const wanted = Number(event.target.value);
    if (Number.isInteger(wanted) && wanted >= 1 && wanted <= pages) actions.turnPage(wanted - page);
    else event.target.value = page;
  };
  return html`<label class="page-number"><span class="unseen">Go to ${unit}</span>
    <input type="number" min="1" max=${pages} value=${page} onChange=${go} /><span>of ${pages}${unit !== "page" && label ? ` · ${shown(label)}` : ""}</span></label>`;
}

/** The quoted words above the page, and whether they were found. */
function Quote({ viewer }) {
  const { mark, place, searching } = viewer;
  if (!mark) return null;
  if (searching) return html`<p class="quote"><span class="pulse"></span>Looking for the words…</p>`;
  if (place?.found) return html`<p class="quote found"><${Icon} name="check" /><q>${mark.quote}</q></p>`;
  return html`<p class="quote unfound"><${Icon} name="warn" /><span>The words of the answer stand nowhere here. Nothing is marked.</span></p>`;
}

function Picture({ viewer, name }) {
  const [ratio, setRatio] = useState(1.414);
  const [shownPage, setShownPage] = useState(null);
  const [failed, setFailed] = useState(false);
  const first = useRef(null);
  const scroller = useRef(null);
  const scale = (viewer.zoom ?? 1) > 1.3 || devicePixelRatio > 1.2 ? 2 : 1.5;
  const source = `${documentPath(viewer.id, `/pages/${viewer.page}.png`)}?scale=${scale}`;
  const boxes = viewer.place?.found && viewer.place.page === viewer.page ? (viewer.place.boxes ?? []) : [];
  useEffect(() => setFailed(false), [source]);
  useLayoutEffect(() => {
    if (shownPage !== viewer.page) return;
    if (first.current) first.current.scrollIntoView({ block: "center", inline: "nearest", behavior: "instant" });
    else scroller.current.scrollTop = 0;
  }, [shownPage, viewer.page, viewer.place]);
  return html`<div class="sheet-scroll" ref=${scroller} tabindex="0" role="region" aria-label=${`Page ${viewer.page}`}>
    <div class="sheet" style=${{ inlineSize: `${100 * (viewer.zoom ?? 1)}%`, aspectRatio: `1 / ${ratio}` }}>
      ${failed
        ? html`<p class="empty centred">This page cannot be shown as a picture. Its text may be.</p>`
        : html`<img key=${viewer.page} src=${source} alt=${`Page ${viewer.page} of ${name}`} decoding="async"
            onLoad=${(event) => { setRatio(event.target.naturalHeight / event.target.naturalWidth); setShownPage(viewer.page); }} onError=${() => setFailed(true)} />`}
      ${boxes.map(([x0, y0, x1, y1], i) => html`<div key=${i} ref=${i === 0 ? first : null} class="box" data-box
        style=${{ left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%` }}></div>`)}
    </div>
  </div>`;
}

const SOONER = 120; // paragraphs that are drawn at once

function Text({ viewer }) {
  const { content, place } = viewer;
  const here = content && content.number === viewer.page;
  const text = here ? content.text : "";
  const marked = here && place?.found && place.page === viewer.page && place.start !== null && place.start !== undefined ? [unitsAt(text, place.start), unitsAt(text, place.end)] : null;
  const first = useRef(null);
  const scroller = useRef(null);
  const paragraphs = here ? cut(text, content.paragraphs) : [];
  const at = marked ? paragraphs.findIndex(([, end]) => end > marked[0]) : -1;
  const [most, setMost] = useState(SOONER);
  const drawn = Math.max(most, at + 20);
  useEffect(() => setMost(SOONER), [content]);
  useLayoutEffect(() => {
    if (first.current) first.current.scrollIntoView({ block: "center", behavior: "instant" });
    else scroller.current.scrollTop = 0;
  }, [content, marked?.[0]]);
  useEffect(() => {
    if (drawn >= paragraphs.length) return undefined;
    const timer = setTimeout(() => setMost(drawn + SOONER), 16);
    return () => clearTimeout(timer);
  }, [drawn, paragraphs.length]);
  let seen = false;
  return html`<div class="sheet-scroll" ref=${scroller} tabindex="0" role="region" aria-label="Text of the source">
    <div class="sheet-text">${here && content.title && html`<h3>${shown(content.title)}</h3>`}
      ${paragraphs.slice(0, drawn).map(([start, end], i) => {
        if (!marked || marked[1] <= start || marked[0] >= end) return html`<p key=${i}>${text.slice(start, end)}</p>`;
        const [a, b] = [Math.max(start, marked[0]), Math.min(end, marked[1])];
        const ref = seen ? null : first;
        seen = true;
        return html`<p key=${i} class="marked">${text.slice(start, a)}<mark ref=${ref}>${text.slice(a, b)}</mark>${text.slice(b, end)}</p>`;
      })}
      ${here && !text && html`<p class="empty">This page has no text.</p>`}
    </div>
  </div>`;
}

/** The paragraphs' places in UTF-16 units: without such places the lines between blank ones. */
function cut(text, paragraphs) {
  if (!paragraphs?.length) return text ? [[0, text.length]] : [];
  if (!/[\ud800-\udbff]/.test(text)) return paragraphs.map(({ start, end }) => [start, end]);
  // One walk for all of them: they are in order.
  let unit = 0;
  let point = 0;
  const to = (wanted) => {
    for (; point < wanted && unit < text.length; point++) unit += text.codePointAt(unit) > 0xffff ? 2 : 1;
    return unit;
  };
  return paragraphs.map(({ start, end }) => [to(start), to(end)]);
}
