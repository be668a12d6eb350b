// Calls of the server's routes. Errors are ApiError with the server's own words.

export class ApiError extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const part = encodeURIComponent;
export const documentPath = (id, rest = "") => `/v1/library/documents/${part(id)}${rest}`;
export const sessionPath = (name, rest = "") => `/v1/library/sessions/${part(name)}${rest}`;

export async function call(method, path, body, { signal } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      credentials: "same-origin",
      cache: "no-store",
      headers: method === "GET" ? {} : { "Content-Type": "application/json", "X-Jamba": "1" },
      body: method === "GET" ? undefined : JSON.stringify(body ?? {}),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  return read(response.status, await response.text());
}

export const get = (path, options) => call("GET", path, undefined, options);
export const post = (path, body) => call("POST", path, body);
export const patch = (path, body) => call("PATCH", path, body);
export const remove = (path) => call("DELETE", path);

function read(status, text) {
  let answer = null;
  try {
    answer = text ? JSON.parse(text) : null;
  } catch {
    if (status < 400) throw new ApiError(status, "The server's answer cannot be read.");
  }
  if (status >= 400) {
    const error = answer?.error ?? {};
    throw new ApiError(status, error.message ?? `The server answered with status ${status}.`, error.code ?? null);
  }
  return answer;
}

/** Send one file; `progress` is called with the share that has left this machine. XHR, because fetch reports no progress. */
export function upload(file, name, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("file", file, name);
    request.open("POST", "/v1/library/documents");
    request.setRequestHeader("X-Jamba", "1");
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(new ApiError(0, "The server ended the upload or does not answer."));
    request.onload = () => {
      try {
        const answer = read(request.status, request.responseText);
        resolve(answer.document ?? answer);
      } catch (error) {
        reject(error);
      }
    };
    request.send(form);
  });
}
