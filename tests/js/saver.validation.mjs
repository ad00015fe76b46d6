// LangGraph's own suite for checkpointers, with `HttpSaver`. `saver.mjs` runs it.

import { validate } from "@langchain/langgraph-checkpoint-validation";

import { HttpSaver } from "./session-store-langgraph/src/index.js";

validate({
  checkpointerName: "HttpSaver",
  // Not BASE_URL: that name is vitest's own.
  createCheckpointer: () => new HttpSaver(process.env.SESSION_STORE_URL),
  // The suite also lists the checkpoints of all threads.
  async destroyCheckpointer(saver) {
    const threads = new Set();
    for await (const { config } of saver.list({})) threads.add(config.configurable.thread_id);
    for (const id of threads) await saver.deleteThread(id);
  },
});
