// A chat on React's `useStream`, as an application would write it: the hook of `@langchain/langgraph-sdk/react`
// (`?hook=legacy`), or the one of `@langchain/react` over server-sent events (`?hook=events`) or a WebSocket
// (`?hook=socket`). The thread is in the address, so that a reload comes back to it.

import { useState } from "react";
import { createRoot } from "react-dom/client";

import { useStream as useLegacyStream } from "@langchain/langgraph-sdk/react";
import { useStream } from "@langchain/react";

const query = new URLSearchParams(location.search);
const apiUrl = query.get("api");
const hook = query.get("hook");
const assistantId = "cued";

function useThread() {
  const [thread, setThread] = useState(query.get("thread"));
  const remember = (id) => {
    query.set("thread", id);
    history.replaceState(null, "", `?${query}`);
    setThread(id);
  };
  return [thread, remember];
}

/** Text, or blocks with text in them. */
const textOf = ({ content }) => (typeof content === "string" ? content : content.map((block) => block.text).join(""));
const human = (content) => ({ messages: [{ type: "human", content, id: crypto.randomUUID() }] });

function LegacyChat() {
  const [threadId, onThreadId] = useThread();
  const stream = useLegacyStream({
    apiUrl, assistantId, threadId, onThreadId, reconnectOnMount: true, fetchStateHistory: true,
  });
  const edit = (message, content) => {
    const { parent_checkpoint: checkpoint } = stream.getMessagesMetadata(message).firstSeenState;
    stream.submit(human(content), { checkpoint });
  };
  const branches = (message) => {
    const { branch, branchOptions } = stream.getMessagesMetadata(message) ?? {};
    return branch && { branch, branchOptions, show: stream.setBranch };
  };
  const send = (content) => stream.submit(human(content));
  const answer = (resume) => stream.submit(undefined, { command: { resume } });
  return <Chat {...{ stream, send, answer, edit, branches }} />;
}

function EventsChat() {
  const [threadId, onThreadId] = useThread();
  const transport = hook === "socket" ? "websocket" : "sse";
  const stream = useStream({ apiUrl, assistantId, threadId, onThreadId, transport });
  const edit = async (message, content) => {
    // The hook's own `useMessageMetadata` knows only the latest superstep.
    const history = await stream.client.threads.getHistory(stream.threadId, { limit: 100 });
    const before = history.find((state) => !state.values.messages?.some(({ id }) => id === message.id));
    await stream.submit(human(content), { forkFrom: before.checkpoint.checkpoint_id });
  };
  const send = (content) => stream.submit(human(content));
  // After a reload the question shown comes from the thread's state; without its id `respond` looks for one among the
  // events, which may not have been replayed yet.
  const answer = (response) => stream.respond(response, { interruptId: stream.interrupt.id });
  return <Chat {...{ stream, send, answer, edit }} />;
}

function Chat({ stream, send, answer, edit, branches }) {
  const [text, setText] = useState("");
  const kind = (message) => message.type ?? message.getType();
  return (
    <main>
      <p id="status">{stream.isLoading ? "loading" : "idle"}</p>
      <ul id="messages">
        {stream.messages.map((message) => (
          <li key={message.id} data-id={message.id}>
            <span className="text">{textOf(message)}</span>
            {kind(message) === "human" && (
              <button className="edit" onClick={() => edit(message, text)}>Edit</button>
            )}
            {branches && <Branches {...branches(message)} />}
          </li>
        ))}
      </ul>
      <input id="text" value={text} onChange={(event) => setText(event.target.value)} />
      <button id="send" onClick={() => send(text)}>Send</button>
      <button id="stop" onClick={() => stream.stop()}>Stop</button>
      {stream.interrupt && <p id="question">{JSON.stringify(stream.interrupt.value)}</p>}
      <button id="answer" onClick={() => answer(text)}>Answer</button>
      {stream.error && <p id="error">{String(stream.error.message ?? stream.error)}</p>}
    </main>
  );
}

function Branches({ branch, branchOptions, show }) {
  if (!branch) return null;
  const place = branchOptions.indexOf(branch);
  return (
    <>
      <span className="branch">{`${place + 1} of ${branchOptions.length}`}</span>
      <button className="previous" onClick={() => show(branchOptions[place - 1])}>Previous</button>
    </>
  );
}

createRoot(document.getElementById("root")).render(hook === "legacy" ? <LegacyChat /> : <EventsChat />);
