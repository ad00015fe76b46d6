// Requests, and repeating what may be repeated: all of them, since the server knows what it has.

import { SessionStoreError, SessionStoreUnavailable } from "./errors.js";
import { FRAME, Reader } from "./frames.js";

/** What a proxy or a server that starts or stops says. */
const PASSING = new Set([429, 502, 503, 504]);

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** How long to wait before each repetition: longer each time, `seconds` in all. */
function* waits(seconds) {
  const deadline = Date.now() + seconds * 1000;
  for (let wait = 50; ; wait = Math.min(wait * 2, 2000)) {
    const left = deadline - Date.now();
    if (left <= 0) return;
    yield Math.min(wait * (0.5 + Math.random() / 2), left);
  }
}

export class Http {
  #url;
  #headers;
  #timeout;
  #retryFor;

  constructor(url = "http://127.0.0.1:8123", { apiKey, headers, timeout = 60, retryFor = 30 } = {}) {
    this.#url = url.replace(/\/+$/, "");
    this.#headers = { ...headers, ...(apiKey && { "x-api-key": apiKey }) };
    this.#timeout = timeout;
    this.#retryFor = retryFor;
  }

  /**
   * The answer's JSON, or a `Reader` if a frame was asked for; `undefined` for an empty one, and for a 404 if that is fine.
   */
  async send(method, path, body, { frame = false, missingOk = false } = {}) {
    const isFrame = body instanceof Uint8Array;
    const headers = { ...this.#headers, accept: frame ? FRAME : "application/json" };
    if (body !== undefined) headers["content-type"] = isFrame ? FRAME : "application/json";
    const request = { method, headers, body: body === undefined || isFrame ? body : JSON.stringify(body) };
    const left = waits(this.#retryFor);
    for (;;) {
      let error;
      try {
        const signal = AbortSignal.timeout(this.#timeout * 1000);
        const answer = await fetch(`${this.#url}${path}`, { ...request, signal, redirect: "error" });
        const bytes = new Uint8Array(await answer.arrayBuffer());
        if (answer.ok) {
          if (frame) return new Reader(bytes);
          return bytes.length === 0 ? undefined : JSON.parse(new TextDecoder().decode(bytes));
        }
        if (missingOk && answer.status === 404) return undefined;
        error = refusal(answer, new TextDecoder().decode(bytes));
      } catch (lost) {
        // What `fetch` throws when it cannot connect, or not in time.
        if (!(lost instanceof TypeError) && lost?.name !== "TimeoutError") throw lost;
        error = new SessionStoreUnavailable(503, `${this.#url}: ${lost.cause?.message ?? lost.message}`);
      }
      if (!(error instanceof SessionStoreUnavailable)) throw error;
      const { value: wait, done } = left.next();
      if (done) throw error;
      await pause(wait);
    }
  }
}

function refusal({ status, statusText }, text) {
  let detail = text.slice(0, 500) || statusText;
  try {
    detail = String(JSON.parse(text).detail);
  } catch {
    // Not the server's own words: a proxy's.
  }
  return new (PASSING.has(status) ? SessionStoreUnavailable : SessionStoreError)(status, detail);
}
