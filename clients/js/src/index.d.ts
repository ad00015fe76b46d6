import { BaseCheckpointSaver, BaseStore } from "@langchain/langgraph-checkpoint";
import type {
  ChannelVersions, Checkpoint, CheckpointListOptions, CheckpointMetadata,
  CheckpointTuple, DeltaChannelHistory, Operation, OperationResults, PendingWrite, SerializerProtocol,
} from "@langchain/langgraph-checkpoint";

type Config = Parameters<BaseCheckpointSaver["getTuple"]>[0];

export interface HttpOptions {
  /** What the server's `auth.api_key` says, if it has one. */
  apiKey?: string;
  /** Sent with every request. */
  headers?: Record<string, string>;
  /** Seconds a request may take; 60 if not given. */
  timeout?: number;
  /** Seconds during which a request is repeated when the server cannot be reached; 30 if not given. */
  retryFor?: number;
}

export interface HttpSaverOptions extends HttpOptions {
  /** The serializer; LangGraph's own if not given. The server does not look into what it writes. */
  serde?: SerializerProtocol;
}

/**
 * Keeps the checkpoints of LangGraph graphs in a session-store server: use it where a `MemorySaver` or `PostgresSaver`
 * would stand. A method returns when what it put is committed.
 *
 * Every method throws a {@link SessionStoreError} when the server refuses, and a {@link SessionStoreUnavailable} when it
 * could not be reached for `retryFor` seconds.
 */
export class HttpSaver extends BaseCheckpointSaver {
  /**
   * @param url The address of the server; `http://127.0.0.1:8123` if not given.
   * @throws Error at once for what cannot be an address, a key or a header.
   */
  constructor(url?: string, options?: HttpSaverOptions);
  getTuple(config: Config): Promise<CheckpointTuple | undefined>;
  /**
   * Without a thread, everything that there is: what this saver's serializer cannot read, as of graphs in Python, is left
   * out. A thread that is named is read, or an error says what cannot be.
   */
  list(config: Config, options?: CheckpointListOptions): AsyncGenerator<CheckpointTuple>;
  put(config: Config, checkpoint: Checkpoint, metadata: CheckpointMetadata, newVersions: ChannelVersions): Promise<Config>;
  putWrites(config: Config, writes: PendingWrite[], taskId: string, taskPath?: string): Promise<void>;
  deleteThread(threadId: string): Promise<void>;
  getDeltaChannelHistory(options: { config: Config; channels: string[] }): Promise<Record<string, DeltaChannelHistory>>;
}

/** Keeps items that threads share in a session-store server; they are the ones its own graphs and SDKs see. */
export class HttpStore extends BaseStore {
  /**
   * @param url The address of the server; `http://127.0.0.1:8123` if not given.
   * @throws Error at once for what cannot be an address, a key or a header.
   */
  constructor(url?: string, options?: HttpOptions);
  batch<Op extends Operation[]>(operations: Op): Promise<OperationResults<Op>>;
}

/** The server refused a request. The text is the server's and names the field. */
export class SessionStoreError extends Error {
  constructor(status: number, detail: string);
  readonly status: number;
  readonly detail: string;
}

/** The server could not be reached, or not in time. What was sent may be sent again: repeating changes nothing. */
export class SessionStoreUnavailable extends SessionStoreError {}
