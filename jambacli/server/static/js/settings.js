// What a person chose in this browser. Without storage a choice holds until the page is left.

export const stored = (name, store = "localStorage") => {
  try {
    return globalThis[store].getItem(name);
  } catch {
    return null;
  }
};

export const keep = (name, value, store = "localStorage") => {
  try {
    globalThis[store].setItem(name, value);
  } catch {
    // Storage may be switched off or full.
  }
};

let reads = stored("ahead") !== "off";
/** Whether sources are read before something is asked. */
export const ahead = () => reads;
export function setAhead(on) {
  reads = on;
  keep("ahead", on ? "on" : "off");
}
