// What a client is made with, checked at once: a mistake here must not show up as a failing graph later.

const NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
const VALUE = /^[\t\x20-\x7e]*$/;
/** How long a body is, is not for others to say. */
const OWN = new Set(["content-length", "transfer-encoding", "connection"]);

/** The address without the slash at its end. */
export function checkedUrl(url) {
  // Without a password.
  const shown = JSON.stringify(typeof url === "string" ? url.replace(/\/\/[^/]*@/, "//") : url);
  if (typeof url !== "string" || url === "") {
    throw new Error(`url: must be the server's address, as in http://127.0.0.1:8123, got ${shown}`);
  }
  if (/[\x00-\x20\x7f\\]/.test(url)) {
    throw new Error(`url: must not hold white space, control characters or backslashes, got ${shown}`);
  }
  if (!/^https?:\/\//i.test(url)) throw new Error(`url: must begin with http:// or https://, got ${shown}`);
  let parts;
  try {
    parts = new URL(url);
  } catch {
    throw new Error(`url: names no host, or no port from 1 to 65535, got ${shown}`);
  }
  if (parts.port === "0") throw new Error(`url: the port must be 1-65535, got ${shown}`);
  if (parts.username || parts.password) throw new Error("url: must not hold a name or password: send them in `headers`");
  if (/[?#]/.test(url)) throw new Error(`url: must end before any ? or #, got ${shown}`);
  return url.replace(/\/+$/, "");
}

/** The headers of every request, names in lower case. Throws for what HTTP cannot carry as it is. */
export function checkedHeaders(apiKey, headers) {
  const checked = {};
  for (const [name, value] of Object.entries(headers ?? {})) {
    if (!NAME.test(name)) throw new Error(`headers: ${JSON.stringify(name)} is not the name of a header`);
    if (OWN.has(name.toLowerCase())) throw new Error(`headers: ${name} is the client's own to send`);
    checked[name.toLowerCase()] = checkedValue(`headers: the value of ${name}`, value);
  }
  if (apiKey) checked["x-api-key"] = checkedValue("apiKey:", apiKey);
  return checked;
}

function checkedValue(what, value) {
  // The value is not repeated: it may be a secret.
  if (typeof value !== "string") throw new Error(`${what} must be a string, got ${typeof value}`);
  if (/[\r\n\0]/.test(value)) {
    throw new Error(`${what} must not hold line breaks or NUL (one at the end comes from a file read without trim())`);
  }
  if (!VALUE.test(value)) throw new Error(`${what} must be printable ASCII`);
  return value;
}
