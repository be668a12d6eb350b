// Numbers, sizes, times and places as people read them.

const whole = new Intl.NumberFormat("en");

export const count = (n) => whole.format(Math.round(n));
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** 1,234 as "1.2k": for places where the exact figure does not matter. */
export function short(n) {
  if (n < 1000) return String(Math.round(n));
  if (n < 1e6) return `${trim(n / 1000)}k`;
  return `${trim(n / 1e6)}M`;
}

const trim = (x) => (x < 10 ? x.toFixed(1).replace(/\.0$/, "") : String(Math.round(x)));

export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  for (const unit of ["kB", "MB", "GB"]) {
    bytes /= 1000;
    if (bytes < 1000) return `${trim(bytes)} ${unit}`;
  }
  return `${trim(bytes / 1000)} TB`;
}

/** Seconds as "about 40 s", "3 min", "1 h 20 min". */
export function time(seconds) {
  if (!(seconds >= 0)) return "";
  if (seconds < 1) return "under 1 s";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}

export function rate(perSecond) {
  return `${perSecond < 10 ? perSecond.toFixed(1) : count(perSecond)} tokens/s`;
}

const clock = new Intl.DateTimeFormat("en", { hour: "numeric", minute: "2-digit" });
const weekday = new Intl.DateTimeFormat("en", { weekday: "long" });
const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });
const dayOfYear = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric" });

/** When something was last changed. Takes seconds since 1970 or an ISO date. */
export function when(value) {
  const date = typeof value === "number" ? new Date(value * 1000) : new Date(value);
  if (Number.isNaN(date.getTime())) return "";
  const now = new Date();
  const days = Math.round((new Date(now).setHours(0, 0, 0, 0) - new Date(date).setHours(0, 0, 0, 0)) / 86400000);
  if (days <= 0) return clock.format(date);
  if (days === 1) return "Yesterday";
  if (days < 7) return weekday.format(date);
  return date.getFullYear() === now.getFullYear() ? day.format(date) : dayOfYear.format(date);
}

/** Offsets count code points on the server and UTF-16 units here. */
export function unitsAt(text, points) {
  if (!/[\ud800-\udbff]/.test(text)) return Math.min(points, text.length);
  let at = 0;
  for (let i = 0; i < points && at < text.length; i++) at += text.codePointAt(at) > 0xffff ? 2 : 1;
  return at;
}

/** Names from elsewhere: control and direction characters would let a name pose as another. */
export const shown = (name) => String(name ?? "").replace(/[\u0000-\u001f\u007f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
