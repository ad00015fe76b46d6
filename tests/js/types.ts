// What `session-store-langgraph` promises to TypeScript; `saver.mjs` has it checked.

import { BaseCheckpointSaver, BaseStore, MemorySaver } from "@langchain/langgraph-checkpoint";

import { HttpSaver, HttpStore, SessionStoreError, SessionStoreUnavailable } from "./session-store-langgraph/src/index.js";

export const saver: BaseCheckpointSaver = new HttpSaver("http://127.0.0.1:8123", { apiKey: "k", serde: new MemorySaver().serde });
export const store: BaseStore = new HttpStore(undefined, { headers: {}, timeout: 1, retryFor: 0 });
export const error: SessionStoreError = new SessionStoreUnavailable(503, "gone");
export const status: number = error.status;
// @ts-expect-error: no such option.
export const wrong = new HttpSaver("http://127.0.0.1:8123", { key: "k" });
