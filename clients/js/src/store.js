// `HttpStore`: LangGraph's long-term memory, kept by a session-store server as items.

import { BaseStore } from "@langchain/langgraph-checkpoint";

import { Http } from "./http.js";

/** The most that the server gives at once. */
const MAX_PAGE = 1000;

export class HttpStore extends BaseStore {
  #http;

  constructor(url, options) {
    super();
    this.#http = new Http(url, options);
  }

  async batch(operations) {
    const results = [];
    let reads = [];
    for (const operation of operations) {
      if ("value" in operation) {
        // Writes keep their order, and whatever comes after one sees it. Reads may run side by side.
        await Promise.all(reads);
        reads = [];
        results.push(await this.#one(operation));
      } else {
        const read = this.#one(operation);
        reads.push(read);
        results.push(read);
      }
    }
    return Promise.all(results);
  }

  async #one(operation) {
    if ("value" in operation) {
      const { namespace, key, value, index } = operation;
      if (value === null) await this.#http.send("DELETE", "/store/items", { namespace, key });
      else await this.#http.send("PUT", "/store/items", { namespace, key, value, index });
      return undefined;
    }
    if ("namespacePrefix" in operation) {
      const { namespacePrefix: namespace_prefix, filter, query, limit, offset } = operation;
      const body = { namespace_prefix, filter, query };
      const items = await this.#pages("/store/items/search", "items", body, limit ?? 10, offset ?? 0);
      return items.map((found) => ({ ...item(found), score: found.score ?? undefined }));
    }
    if ("key" in operation) {
      const query = new URLSearchParams({ namespace: operation.namespace.join("."), key: operation.key });
      const found = await this.#http.send("GET", `/store/items?${query}`);
      return found ? item(found) : null;
    }
    const { matchConditions = [], maxDepth: max_depth, limit, offset } = operation;
    const conditions = Object.fromEntries(matchConditions.map(({ matchType, path }) => [matchType, path]));
    return this.#pages("/store/namespaces", "namespaces", { ...conditions, max_depth }, limit ?? Infinity, offset ?? 0);
  }

  /** A list that may be longer than what the server gives at once. */
  async #pages(path, member, query, limit, offset) {
    const listed = [];
    while (listed.length < limit) {
      const asked = Math.min(limit - listed.length, MAX_PAGE);
      const answer = await this.#http.send("POST", path, { ...query, limit: asked, offset: offset + listed.length });
      const page = answer?.[member];
      if (!Array.isArray(page)) throw this.#http.unexpected(answer);
      listed.push(...page);
      if (page.length < asked) break;
    }
    return listed;
  }
}

function item({ namespace, key, value, created_at: createdAt, updated_at: updatedAt }) {
  return { namespace, key, value, createdAt: new Date(createdAt), updatedAt: new Date(updatedAt) };
}
