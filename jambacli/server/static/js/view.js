// Preact with htm: templates in plain JavaScript, no build step. Text is always a text node.
import { h, render, Component, Fragment } from "../vendor/preact.js";
import htm from "../vendor/htm.js";

export { useEffect, useLayoutEffect, useMemo, useRef, useState, useCallback, useId } from "../vendor/hooks.js";
export { h, render, Component, Fragment };
export const html = htm.bind(h);

/** Class names from strings and falsy values. */
export const classes = (...names) => names.filter(Boolean).join(" ");
