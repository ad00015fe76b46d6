// `HttpStore`: LangGraph's long-term memory, kept by a session-store server as items.

import { BaseStore } from "@langchain/langgraph-checkpoint";

import { Http } from "./http.js";

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
      const { namespacePrefix: namespace_prefix, filter, limit = 10, offset = 0, query } = operation;
      const body = { namespace_prefix, filter, limit, offset, query };
      const { items } = await this.#http.send("POST", "/store/items/search", body);
      return items.map((found) => ({ ...item(found), score: found.score ?? undefined }));
    }
    if ("key" in operation) {
      const query = new URLSearchParams({ namespace: operation.namespace.join("."), key: operation.key });
      const found = await this.#http.send("GET", `/store/items?${query}`, undefined, { missingOk: true });
      return found ? item(found) : null;
    }
    const { matchConditions = [], maxDepth: max_depth, limit, offset } = operation;
    const conditions = Object.fromEntries(matchConditions.map(({ matchType, path }) => [matchType, path]));
    const { namespaces } = await this.#http.send("POST", "/store/namespaces", { ...conditions, max_depth, limit, offset });
    return namespaces;
  }
}

function item({ namespace, key, value, created_at: createdAt, updated_at: updatedAt }) {
  return { namespace, key, value, createdAt: new Date(createdAt), updatedAt: new Date(updatedAt) };
}
