// Both `useStream` hooks on a page in Chromium, against BASE_URL. The page comes from an origin of its own.

import { createServer } from "node:http";
import { after } from "node:test";

import { build } from "esbuild";
import { chromium } from "playwright-core";

import { BASE, PATIENCE, check, client, cue, equal, ok, until } from "./checks.mjs";

const bundled = await build({
  entryPoints: [new URL("page.jsx", import.meta.url).pathname],
  bundle: true, write: false, format: "esm", jsx: "automatic", define: { "process.env.NODE_ENV": '"production"' },
});
const script = bundled.outputFiles[0].contents;
const html = '<!doctype html><meta charset="utf-8"><div id="root"></div><script type="module" src="/page.js"></script>';

const site = createServer((request, response) => {
  const isScript = request.url === "/page.js";
  response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
  response.end(isScript ? script : html);
});
await new Promise((resolve) => site.listen(0, "127.0.0.1", resolve));

const browser = await chromium.launch({
  executablePath: process.env.SESSION_STORE_TEST_CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
  ],
  timeout: PATIENCE,
});
after(async () => {
  await browser.close();
  site.close();
  site.closeAllConnections();
});

/** The chat in a browser of somebody who was never here before. */
class Chat {
  static async open(hook) {
    const context = await browser.newContext();
    const page = await context.newPage();
    page.setDefaultTimeout(PATIENCE / 2);
    const told = [];
    page.on("pageerror", (error) => told.push(`error on the page: ${error}`));
    const query = new URLSearchParams({ hook, api: BASE });
    await page.goto(`http://127.0.0.1:${site.address().port}/?${query}`);
    return Object.assign(new Chat(), { context, page, told });
  }

  get threadId() {
    return new URL(this.page.url()).searchParams.get("thread");
  }

  async type(text, button) {
    await this.page.fill("#text", text);
    await this.page.click(button);
  }

  send = (text) => this.type(text, "#send");

  /** Waits until the page shows these messages and nothing else. */
  async shows(messages, status = "idle") {
    let seen;
    await until("the page shows it", async () => {
      seen = await this.page.evaluate(() => ({
        status: document.querySelector("#status")?.textContent,
        messages: [...document.querySelectorAll("#messages .text")].map((element) => element.textContent),
        error: document.querySelector("#error")?.textContent,
      }));
      return seen.status === status && JSON.stringify(seen.messages) === JSON.stringify(messages);
    }).catch((error) => {
      throw new Error(`${error.message}: ${JSON.stringify({ want: { status, messages }, seen, told: this.told })}`);
    });
  }

  async close() {
    await this.context.close();
    equal(this.told, []);
  }
}

for (const hook of ["legacy", "events", "socket"]) {
  const inChat = (name, body, hooks = ["legacy", "events", "socket"]) => {
    if (!hooks.includes(hook)) return;
    check(`${name} (${hook})`, async () => {
      const chat = await Chat.open(hook);
      await body(chat);
      await chat.close();
    });
  };
  // What does not depend on how events arrive is not repeated.
  const once = ["legacy", "events"];
  const held = "hold: one two three";

  inChat("an answer arrives token by token", async (chat) => {
    await chat.send(held);
    await chat.shows([held, "one "], "loading");
    await cue(chat.threadId, held);
    await chat.shows([held, "one two three"]);
  });

  inChat("a reload in the middle of a run joins it again", async (chat) => {
    await chat.send(held);
    await chat.shows([held, "one "], "loading");
    await chat.page.reload();
    await chat.shows([held, "one "], "loading");
    await cue(chat.threadId, held);
    await chat.shows([held, "one two three"]);
    await chat.page.reload();
    await chat.shows([held, "one two three"]);
  });

  inChat("an earlier message is edited, on a branch of its own", async (chat) => {
    await chat.send("first");
    await chat.shows(["first", "You said first"]);
    await chat.send("second");
    const before = ["first", "You said first", "second", "You said second"];
    await chat.shows(before);
    await chat.type("other", "#messages li:nth-child(1) .edit");
    await chat.shows(["other", "You said other"]);
    if (hook === "legacy") {
      const branch = chat.page.locator("#messages li:nth-child(1) .branch");
      await until("the branches are shown", async () => (await branch.textContent()) === "2 of 2");
      await chat.page.click("#messages li:nth-child(1) .previous");
      await chat.shows(before);
    }
    await chat.page.reload();
    await chat.shows(["other", "You said other"]);
  }, once);

  inChat("a question is asked and answered", async (chat) => {
    await chat.send("ask: Tea?");
    const asked = async () => {
      await chat.shows(["ask: Tea?"]);
      equal(await chat.page.textContent("#question"), '{"question":"Tea?"}');
    };
    await asked();
    await chat.page.reload();
    await asked();
    await chat.type("yes", "#answer");
    await chat.shows(["ask: Tea?", 'The answer is "yes".']);
    await until("the question is gone", async () => (await chat.page.locator("#question").count()) === 0);
  });

  inChat("a run is stopped, and the conversation goes on", async (chat) => {
    await chat.send(held);
    await chat.shows([held, "one "], "loading");
    await chat.page.click("#stop");
    await until("the run is cancelled", async () => {
      const [run] = await client.runs.list(chat.threadId);
      return run.status === "interrupted";
    });
    await until("the page is idle", async () => (await chat.page.textContent("#status")) === "idle");
    await chat.send("again");
    await until("an answer", async () => (await chat.page.textContent("#messages")).includes("You said again"));
  }, once);

  inChat("a failure is shown, and the conversation goes on", async (chat) => {
    await chat.send("fail: no tea");
    await until("the error", async () => (await chat.page.locator("#error").count()) === 1);
    ok((await chat.page.textContent("#error")).includes("no tea"), await chat.page.textContent("#error"));
    await until("the thread says so", async () => (await client.threads.get(chat.threadId)).status === "error");
    await chat.send("again");
    await until("an answer", async () => (await chat.page.textContent("#messages")).includes("You said again"));
    await until("the error is gone", async () => (await chat.page.locator("#error").count()) === 0);
  }, once);
}
