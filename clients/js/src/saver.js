// `HttpSaver`: a LangGraph checkpointer whose checkpoints are kept by a session-store server.

import {
  BaseCheckpointSaver, TASKS, WRITES_IDX_MAP, getCheckpointId, maxChannelVersion,
} from "@langchain/langgraph-checkpoint";

import { SessionStoreError } from "./errors.js";
import { Writer } from "./frames.js";
import { Http } from "./http.js";

/** Values up to this size are always sent; the server refers to larger ones by hash. */
const INLINE = 128;
/** Checkpoints whose values are remembered, so that what has not changed need not be sent. */
const REMEMBERED = 4096;
const PAGE = 50;
/** How long a task's writes wait for the checkpoint that begins their thread, when it is on its way. */
const BEGINNING = 5000;

const thread = (id) => `/threads/${encodeURIComponent(id)}`;
const checkpoints = (id, rest) => `${thread(id)}/checkpoints${rest}`;
const configurable = (thread_id, checkpoint_ns, checkpoint_id) => ({
  configurable: { thread_id, checkpoint_ns, checkpoint_id },
});

async function hashOf(data) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest.subarray(0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** What the server has of the latest checkpoints: by channel, its version and how the value is sent again. */
class Remembered {
  #checkpoints = new Map();
  #key = (...place) => JSON.stringify(place);

  get(threadId, ns, id) {
    return this.#checkpoints.get(this.#key(threadId, ns, id));
  }

  set(threadId, ns, id, known) {
    const key = this.#key(threadId, ns, id);
    this.#checkpoints.delete(key);
    this.#checkpoints.set(key, known);
    if (this.#checkpoints.size > REMEMBERED) this.#checkpoints.delete(this.#checkpoints.keys().next().value);
  }
}

/** A value that the server has: its bytes if they are few, otherwise their hash. */
async function known(version, type, data, hash) {
  if (data.length <= INLINE) return { version, type, data };
  return { version, type, hash: hash ?? (await hashOf(data)) };
}

export class HttpSaver extends BaseCheckpointSaver {
  #http;
  #remembered = new Remembered();

  constructor(url, { serde, ...options } = {}) {
    super(serde);
    this.#http = new Http(url, options);
  }

  // ---- writing --------------------------------------------------------------------------------------------------

  async put(config, checkpoint, metadata, newVersions) {
    const { threadId, ns, id: parent } = placeOf(config);
    const { channel_values: values, ...document } = checkpoint;
    const before = parent === undefined ? {} : await this.#known(threadId, ns, parent);
    const after = {};
    const made = {};
    for (const [channel, value] of Object.entries(values)) {
      const version = checkpoint.channel_versions[channel];
      if (version === undefined) continue;
      if (newVersions?.[channel] === undefined) {
        // Not written since: what the parent has, if it has it.
        if (before[channel]?.version === version) {
          after[channel] = before[channel];
          continue;
        }
        // Where nothing came before, LangGraph's savers keep what is new and nothing else.
        if (parent === undefined) continue;
      }
      const [type, data] = await this.serde.dumpsTyped(value);
      made[channel] = { type, data };
      after[channel] = await known(version, type, data);
    }
    const fields = {
      op: "put",
      checkpoint_ns: ns,
      checkpoint: await this.#plain(document),
      metadata: await this.#plain(metadata),
      parent_checkpoint_id: parent,
    };
    await this.#store(threadId, async (writer, whole) => {
      const sent = {};
      for (const [channel, { type, data, hash }] of Object.entries(after)) {
        if (made[channel]) sent[channel] = writer.value(made[channel].type, made[channel].data);
        else if (data) sent[channel] = writer.value(type, data);
        // The server has lost what it had: all of it is sent.
        else if (whole) sent[channel] = writer.value(...(await this.serde.dumpsTyped(values[channel])));
        else sent[channel] = { type, hash };
      }
      return { ...fields, values: sent };
    });
    this.#remembered.set(threadId, ns, checkpoint.id, after);
    return configurable(threadId, ns, checkpoint.id);
  }

  async putWrites(config, writes, taskId, taskPath = "") {
    const { threadId, ns, id } = placeOf(config);
    if (id === undefined) throw new Error("config.configurable.checkpoint_id is missing: writes hang on a checkpoint");
    const made = await Promise.all(
      writes.map(async ([channel, value], index) => ({
        channel,
        idx: WRITES_IDX_MAP[channel] ?? index,
        value: await this.serde.dumpsTyped(value),
      })),
    );
    const operation = async (writer) => ({
      op: "put_writes",
      checkpoint_ns: ns,
      checkpoint_id: id,
      task_id: taskId,
      task_path: taskPath,
      writes: made.map(({ channel, idx, value }) => ({ channel, idx, ...writer.value(...value) })),
    });
    const deadline = Date.now() + BEGINNING;
    for (;;) {
      try {
        return await this.#store(threadId, operation);
      } catch (error) {
        // The thread's first checkpoint may be on its way: LangGraph does not wait for it.
        const isEarly = error instanceof SessionStoreError && error.status === 404 && error.detail.startsWith("Thread ");
        if (!isEarly || Date.now() > deadline) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async #store(threadId, operation) {
    for (const whole of [false, true]) {
      const writer = new Writer();
      const operations = [await operation(writer, whole)];
      const body = writer.frame({ threads: [{ thread_id: threadId, operations }] });
      const answer = await this.#http.send("POST", "/checkpoints/batch", body);
      if (answer?.results?.length !== 1) throw this.#http.unexpected(answer);
      const { status, detail, missing_hashes: missing } = answer.results[0];
      if (status < 300) return;
      if (whole || !missing) throw new SessionStoreError(status, detail);
    }
  }

  /** What the server has of a checkpoint; nothing if there is none. */
  async #known(threadId, ns, id) {
    if (!this.#remembered.get(threadId, ns, id)) await this.getTuple(configurable(threadId, ns, id));
    return this.#remembered.get(threadId, ns, id) ?? {};
  }

  /** A document as JSON that the server can search, with what the serializer adds to it. */
  async #plain(document) {
    const [type, data] = await this.serde.dumpsTyped(document);
    return type === "json" ? JSON.parse(new TextDecoder().decode(data)) : document;
  }

  /** The opposite of `#plain`. */
  async #revived(document) {
    return this.serde.loadsTyped("json", JSON.stringify(document));
  }

  // ---- reading --------------------------------------------------------------------------------------------------

  async getTuple(config) {
    // Of no thread there is none.
    if ((config?.configurable?.thread_id ?? undefined) === undefined) return undefined;
    const { threadId, ns } = placeOf(config);
    const id = getCheckpointId(config) || "latest";
    const path = checkpoints(threadId, `/${encodeURIComponent(id)}${ns && `?ns=${encodeURIComponent(ns)}`}`);
    const reader = await this.#http.send("GET", path, undefined, { frame: true, missingOk: true });
    return reader && this.#tuple(reader, reader.document);
  }

  async *list(config, { limit, before, filter } = {}) {
    const { thread_id: only, checkpoint_ns, checkpoint_id } = config?.configurable ?? {};
    // Whoever asks for a session, and has none, must not be given all of them.
    const threads = only === undefined ? this.#threads() : [placeOf(config).threadId];
    let left = limit ?? Infinity;
    for await (const threadId of threads) {
      const query = {
        checkpoint_ns,
        checkpoint_id,
        before: before?.configurable?.checkpoint_id,
        metadata: filter && (await this.#plain(filter)),
      };
      while (left > 0) {
        const page = Math.min(left, PAGE);
        const path = checkpoints(threadId, "/search");
        const reader = await this.#http.send("POST", path, { ...query, limit: page }, { frame: true });
        for (const found of reader.document) {
          const tuple = await this.#tuple(reader, found).catch((error) => {
            // Threads that nobody asked for by name may be of graphs in another language.
            if (only === undefined && error instanceof Unreadable) return undefined;
            throw error;
          });
          if (!tuple) continue;
          yield tuple;
          left -= 1;
        }
        if (reader.document.length < page) break;
        const last = reader.document.at(-1);
        query.after = { checkpoint_ns: last.checkpoint_ns, checkpoint_id: last.checkpoint_id };
      }
    }
  }

  async getDeltaChannelHistory({ config, channels }) {
    if (channels.length === 0) return {};
    const { threadId, ns } = placeOf(config);
    const body = { checkpoint_ns: ns, checkpoint_id: getCheckpointId(config) || undefined, channels };
    const reader = await this.#http.send("POST", checkpoints(threadId, "/deltas"), body, { frame: true });
    const load = (value) => this.#load(value.type, reader.data(value), `thread ${threadId}`);
    const history = {};
    for (const [channel, { writes, seed }] of Object.entries(reader.document.channels)) {
      const loaded = writes.map(async (write) => [write.task_id, channel, await load(write)]);
      history[channel] = { writes: await Promise.all(loaded) };
      if (seed !== undefined) history[channel].seed = await load(seed);
    }
    return history;
  }

  /** A value. Throws `Unreadable` for one that another writer's serializer made. */
  async #load(type, data, where) {
    try {
      return await this.serde.loadsTyped(type, data);
    } catch (error) {
      const [own] = await this.serde.dumpsTyped({});
      if (type === own) throw error;
      throw new Unreadable(
        `${where}: a value is written as "${type}", which this saver's serializer cannot read (${error.message}): ` +
          "graphs in another language, or with another serializer, keep their state there",
        { cause: error },
      );
    }
  }

  async *#threads() {
    const query = { limit: 100, sort_by: "thread_id", sort_order: "asc", select: ["thread_id"] };
    for (let offset = 0; ; offset += query.limit) {
      const found = await this.#http.send("POST", "/threads/search", { ...query, offset });
      for (const { thread_id: id } of found) yield id;
      if (found.length < query.limit) return;
    }
  }

  async #tuple(reader, found) {
    const { thread_id: threadId, checkpoint_ns: ns, checkpoint_id: id, parent_checkpoint_id: parent } = found;
    const versions = found.checkpoint.channel_versions ?? {};
    const has = {};
    const values = {};
    for (const [channel, value] of Object.entries(found.values)) {
      const data = reader.data(value);
      has[channel] = await known(versions[channel], value.type, data, value.hash);
      values[channel] = await this.#load(value.type, data, `thread ${threadId}, channel ${channel}`);
    }
    this.#remembered.set(threadId, ns, id, has);
    const pendingWrites = await Promise.all(
      found.pending_writes.map(async (write) => [
        write.task_id,
        write.channel,
        await this.#load(write.type, reader.data(write), `thread ${threadId}, channel ${write.channel}`),
      ]),
    );
    const tuple = {
      config: configurable(threadId, ns, id),
      checkpoint: { ...(await this.#revived(found.checkpoint)), channel_values: values },
      metadata: await this.#revived(found.metadata),
      pendingWrites,
    };
    if (parent) tuple.parentConfig = configurable(threadId, ns, parent);
    if (parent && tuple.checkpoint.v < 4) await this.#moveSends(tuple);
    return tuple;
  }

  /** Checkpoints before version 4 kept what was sent to their tasks in the writes of their parent. */
  async #moveSends({ checkpoint, parentConfig }) {
    const writes = (await this.getTuple(parentConfig))?.pendingWrites ?? [];
    const versions = Object.values(checkpoint.channel_versions);
    checkpoint.channel_values[TASKS] = writes.filter(([, channel]) => channel === TASKS).map(([, , value]) => value);
    checkpoint.channel_versions[TASKS] = versions.length ? maxChannelVersion(...versions) : this.getNextVersion(undefined);
  }

  // ---- whole threads --------------------------------------------------------------------------------------------

  async deleteThread(threadId) {
    await this.#http.send("DELETE", thread(checkedThread(threadId)), undefined, { missingOk: true });
  }
}

/** Where a config points to. */
function placeOf(config) {
  const { thread_id: threadId, checkpoint_ns: ns, checkpoint_id: id } = config?.configurable ?? {};
  return { threadId: checkedThread(threadId), ns: ns ?? "", id: id || undefined };
}

function checkedThread(threadId) {
  if (threadId === undefined || threadId === null) {
    throw new Error("config.configurable.thread_id is missing: it names the session");
  }
  // These would be steps in a path.
  if (["", ".", ".."].includes(String(threadId))) {
    throw new Error(`config.configurable.thread_id: ${JSON.stringify(threadId)} cannot name a session`);
  }
  return String(threadId);
}

/** A value of another writer. */
class Unreadable extends Error {
  name = "Unreadable";
}
