// LangGraph graphs in JavaScript, with their state in a session-store server.

export { SessionStoreError, SessionStoreUnavailable } from "./errors.js";
export { HttpSaver } from "./saver.js";
export { HttpStore } from "./store.js";
