// `@langchain/langgraph-sdk`, unchanged, against BASE_URL: every resource, both streaming protocols, broken connections.

import "./assistants.mjs";
import "./threads.mjs";
import "./runs.mjs";
import "./memory.mjs";
import "./event_streams.mjs";
import "./reconnects.mjs";
