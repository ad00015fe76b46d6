// Requests, and repeating what may be repeated: all of them, since the server knows what it has.

import { SessionStoreError, SessionStoreUnavailable } from "./errors.js";
import { FRAME, Reader } from "./frames.js";
import { checkedHeaders, checkedUrl } from "./settings.js";

/** What a proxy or a server that starts or stops says. */
const PASSING = new Set([429, 502, 503, 504]);

const JSON_TYPE = "application/json";

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
    this.#url = checkedUrl(url);
    this.#headers = checkedHeaders(apiKey, headers);
    this.#timeout = timeout;
    this.#retryFor = retryFor;
  }

  /**
   * The answer's JSON, or a `Reader` if a frame was asked for; `undefined` for an empty one, and when the server says that
   * there is no such thread or checkpoint, if that is fine. Throws for answers of anybody else.
   */
  async send(method, path, body, { frame = false, missingOk = false } = {}) {
    const isFrame = body instanceof Uint8Array;
    const headers = { ...this.#headers, accept: frame ? FRAME : JSON_TYPE };
    if (body !== undefined) headers["content-type"] = isFrame ? FRAME : JSON_TYPE;
    const request = { method, headers, body: body === undefined || isFrame ? body : JSON.stringify(body) };
    const left = waits(this.#retryFor);
    for (;;) {
      let error;
      try {
        const signal = AbortSignal.timeout(this.#timeout * 1000);
        // Redirects are seen, not followed: the server makes none.
        const answer = await fetch(`${this.#url}${path}`, { ...request, signal, redirect: "manual" });
        const bytes = new Uint8Array(await answer.arrayBuffer());
        if (answer.ok) return this.#read(answer, bytes, frame);
        error = this.#refusal(answer, bytes);
        if (missingOk && isMissing(answer, error)) return undefined;
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

  #read(answer, bytes, frame) {
    if (!frame && bytes.length === 0) return undefined;
    if (kindOf(answer) === (frame ? FRAME : JSON_TYPE)) {
      try {
        return frame ? new Reader(bytes) : JSON.parse(new TextDecoder().decode(bytes));
      } catch {
        // Not what it says it is.
      }
    }
    throw this.#unlike(answer, bytes);
  }

  #refusal(answer, bytes) {
    const text = new TextDecoder().decode(bytes);
    let detail;
    try {
      ({ detail } = JSON.parse(text));
    } catch {
      // Some refusals of the store are plain text.
      const { status } = answer;
      if (status >= 400 && status < 500 && status !== 404 && kindOf(answer) === "text/plain") detail = text.slice(0, 500);
    }
    if (!detail) return this.#unlike(answer, bytes);
    const says = typeof detail === "string" ? detail : JSON.stringify(detail);
    return new (errorOf(answer))(answer.status, says);
  }

  /** What anything but a session-store server answers. */
  #unlike(answer, bytes) {
    const text = new TextDecoder().decode(bytes.subarray(0, 200)).trim() || "an empty answer";
    const kind = answer.headers.get("content-type");
    const what = kind ? `${kind}: ${text}` : text;
    const says = `${this.#url}: this is not an answer of a session-store server: ${what}`;
    return new (errorOf(answer))(answer.status, says);
  }

  /** What it says when an answer has not the members that it should. */
  unexpected(document) {
    const text = JSON.stringify(document)?.slice(0, 200);
    return new SessionStoreError(200, `${this.#url}: this is not an answer of a session-store server: ${text}`);
  }
}

const errorOf = ({ status }) => (PASSING.has(status) ? SessionStoreUnavailable : SessionStoreError);

const kindOf = (answer) => (answer.headers.get("content-type") ?? "").split(";")[0].trim().toLowerCase();

/** Others say 404 as well: a proxy, or another program at this address. That must not look like an empty session. */
function isMissing(answer, { detail }) {
  return answer.status === 404 && kindOf(answer) === JSON_TYPE && /^(Thread|Checkpoint) /.test(detail);
}
