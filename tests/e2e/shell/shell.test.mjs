// What shell.js does by itself, with a stub for each thing that it touches. Run by tests/e2e/shell.rs.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Door, Slots, enqueue, send, variables } from "../../../shared/edge/src/shell.js";

const asked = (keys, settles) => (keys.length > 0 ? ["L", settles, ...keys] : []);
const decision = ({ status = 202, lines = [], texts = [], queue = "Q", body = "{}", keys = [], settles = 1 } = {}) =>
  [status, 1, lines.length, texts.length, asked(keys, settles).length, ...asked(keys, settles), "content-type", "application/json", ...lines.flat(), ...texts.flatMap((text) => [queue, text].flat().slice(-2)), body].join("\n");

const post = (body, headers = {}) => new Request("http://e.rw/x?y=1", { method: "POST", body, headers, duplex: "half" });

function queue(refusing = () => false) {
  const taken = [];
  const take = (texts) => {
    if (texts.some(refusing)) throw new Error("away");
    taken.push(texts);
  };
  return {
    taken,
    send: async (text, options) => (assert.equal(options.contentType, "text"), take([text])),
    sendBatch: async (messages) => (assert.ok(messages.every((m) => m.contentType === "text")), take(messages.map((m) => m.body))),
  };
}

const never = () => assert.fail("nothing was refused");

test("a request comes over whole, headers in order, empty where absent", async () => {
  let seen;
  const door = new Door("x-correlation-id\nauthorization\napikey", 10, (env, head, body) => ((seen = [env, head, body]), decision()), never);
  const env = {};
  const answer = await door.serve(post("{}", { authorization: "Bearer k", "content-length": "2" }), env);
  assert.deepEqual(seen, [env, "\nwhole\nPOST\nhttp://e.rw/x?y=1\n\nBearer k\n", new Uint8Array([123, 125])]);
  assert.equal(answer.status, 202);
  assert.equal(answer.headers.get("content-type"), "application/json");
  assert.equal(await answer.text(), "{}");
});

test("a body over the limit is not brought over, whether it says so or not", async () => {
  for (const headers of [{}, { "content-length": "11" }]) {
    let head;
    const door = new Door("x", 10, (_, text, body) => (assert.equal(body.length, 0), (head = text), decision({ status: 413 })), never);
    assert.equal((await door.serve(post("x".repeat(11), headers), {})).status, 413);
    assert.match(head, /^\nlarge\n/);
  }
  const door = new Door("x", 10, (_, text, body) => (assert.match(text, /^\nwhole/), assert.equal(body.length, 10), decision()), never);
  await door.serve(post("x".repeat(10)), {});
});

test("a body that breaks off is said to be cut", async () => {
  const broken = new ReadableStream({ pull: (controller) => controller.error(new Error("gone")) });
  let head;
  const door = new Door("x", 10, (_, text) => ((head = text), decision({ status: 400 })), never);
  await door.serve(post(broken), {});
  assert.match(head, /^\ncut\n/);
});

test("the answer waits for the queue, and its body may have line breaks", async () => {
  const Q = queue();
  const door = new Door("x", 10, () => decision({ texts: ['{"a":1}'], body: "a\nb" }), never);
  const answer = await door.serve(post("{}"), { Q });
  assert.deepEqual(Q.taken, [['{"a":1}']]);
  assert.equal(await answer.text(), "a\nb");
});

test("lines are written only when all the work is safe", async (context) => {
  const log = context.mock.method(console, "log", () => {});
  const warn = context.mock.method(console, "warn", () => {});
  const lines = [["log", '{"event":"TAKEN"}']];
  const instead = decision({ status: 503, lines: [["warn", '{"event":"REFUSED"}']] });
  const door = (refused) => new Door("x", 10, () => decision({ lines, texts: ["{}"] }), refused);
  const away = { Q: queue(() => true) };
  assert.equal((await door(async () => instead).serve(post("{}"), away)).status, 503);
  assert.equal(log.mock.callCount(), 0);
  assert.equal(warn.mock.calls[0].arguments[0], '{"event":"REFUSED"}');
  assert.equal((await door(async () => "").serve(post("{}"), away)).status, 202);
  assert.equal(log.mock.calls[0].arguments[0], '{"event":"TAKEN"}');
});

test("of many texts each that the queue refuses is asked for, until one has no place at all", async () => {
  const texts = Array.from({ length: 250 }, (_, i) => `{"n":${i}}`);
  const Q = queue((text) => text === '{"n":120}');
  const asked = [];
  const keep = async (_, queue, text, why) => (assert.equal(queue, "Q"), assert.equal(why, "away"), asked.push(text), "");
  let door = new Door("x", 10, () => decision({ texts }), keep);
  assert.equal((await door.serve(post("{}"), { Q })).status, 202);
  assert.deepEqual(Q.taken.map((some) => some.length), [100, 50]);
  assert.deepEqual(asked, texts.slice(100, 200));
  const full = decision({ status: 503 });
  door = new Door("x", 10, () => decision({ texts }), async (_, __, text) => (text === '{"n":130}' ? full : ""));
  assert.equal((await door.serve(post("{}"), { Q })).status, 503);
});

test("each text goes to its queue, in order", async () => {
  const [Q, R] = [queue(), queue()];
  const texts = [["Q", "1"], ["Q", "2"], ["R", "3"], ["Q", "4"]];
  await new Door("x", 10, () => decision({ texts }), never).serve(post("{}"), { Q, R });
  assert.deepEqual([Q.taken, R.taken], [[["1", "2"], ["4"]], [["3"]]]);
});

test("where nobody is over a limit the first decision stands, and else it is made again with all counts", async () => {
  const within = (over) => ({ limit: async ({ key }) => ({ success: !over.includes(key) }) });
  const serve = async (door, L) => {
    const Q = queue();
    await door.serve(post("{}"), { Q, L });
    return Q.taken.flat();
  };
  const asked = [];
  const decide = (_, head, body) => {
    const counts = head.split("\n")[0];
    asked.push([body.length, counts]);
    if (counts === "") return decision({ keys: ["a", "b"], texts: ["first"] });
    return counts === "01" ? decision({ keys: ["c"], settles: 0, texts: ["second"] }) : decision({ texts: ["last"] });
  };
  assert.deepEqual(await serve(new Door("x", 10, decide, never), within([])), ["first"]);
  assert.deepEqual(asked.splice(0), [[2, ""]]);
  assert.deepEqual(await serve(new Door("x", 10, decide, never), within(["b"])), ["last"]);
  assert.deepEqual(asked.splice(0), [[2, ""], [2, "01"], [2, "01,0"]]);
  // That nobody counts is told once.
  const uncounted = new Door("x", 10, decide, never);
  assert.deepEqual(await serve(uncounted, undefined), ["last"]);
  assert.deepEqual(await serve(uncounted, undefined), ["first"]);
  assert.deepEqual(asked, [[2, ""], [2, "??"], [2, ""]]);
});

test("long texts do not travel in one batch", async () => {
  const texts = Array.from({ length: 5 }, () => "x".repeat(30_000));
  const Q = queue();
  await new Door("x", 10, () => decision({ texts }), never).serve(post("{}"), { Q });
  assert.deepEqual(Q.taken.map((some) => some.length), [2, 2, 1]);
});

test("a queue that is not bound refuses", async () => {
  const door = new Door("x", 10, () => decision({ texts: ["{}"] }), async (_, __, text, why) => (assert.match(why, /undefined/), ""));
  assert.equal((await door.serve(post("{}"), {})).status, 202);
  assert.notEqual(await enqueue({}, "Q", "{}", 0), "");
  assert.equal(await enqueue({ Q: queue() }, "Q", "{}", 5), "");
});

test("variables are texts, and bindings are none", () => {
  const env = { TEXT: "a", NUMBER: 8, FLAG: false, QUEUE: { send() {} } };
  assert.equal(variables(env, "TEXT\nNUMBER\nFLAG\nQUEUE\nNONE"), "a\0" + "8\0false\0\0");
});

test("slots let so many in, and the others in their order", async () => {
  const slots = new Slots(2);
  const order = [];
  let inside = 0;
  const visit = async (name) => {
    await slots.enter();
    order.push(name);
    assert.ok(++inside <= 2);
    await new Promise((resolve) => setTimeout(resolve, 5));
    inside--;
    slots.leave();
  };
  await Promise.all(["a", "b", "c", "d", "e"].map(visit));
  assert.deepEqual(order, ["a", "b", "c", "d", "e"]);
  assert.equal(slots.free, 2);
});

test("an answer, and each way of having none", async (context) => {
  const fetch = context.mock.method(globalThis, "fetch");
  const ask = (limit = 100) => send(new Slots(1), "http://e.rw", "a\nb\nc\nd", "{}", 50, limit);
  const streamed = (bytes) => new Response(new ReadableStream({ start: (c) => (c.enqueue(new Uint8Array(bytes)), c.close()) }),
    { status: 429, headers: { "retry-after": "7", "content-length": "1" } });
  fetch.mock.mockImplementation(async (url, init) => {
    assert.deepEqual(init.headers, { a: "b", c: "d" });
    assert.equal(init.redirect, "manual");
    return new Response('{"a":\n1}', { status: 429, headers: { "retry-after": "7" } });
  });
  assert.equal(await ask(), '429\n7\n{"a":\n1}');
  fetch.mock.mockImplementation(async (_, init) => new Response(`${init.method} ${"body" in init}`));
  assert.equal(await ask(), "200\n\nPOST true");
  assert.equal(await send(new Slots(1), "http://e.rw", "a\nb", "", 50, 100, "GET"), "200\n\nGET false");
  fetch.mock.mockImplementation(async () => streamed(101));
  assert.equal(await ask(), "long\n\n", "whatever length it announces");
  fetch.mock.mockImplementation(async () => Promise.reject(new TypeError("Invalid URL")));
  assert.equal(await ask(), "connect\nTypeError\nInvalid URL");
  const dying = new ReadableStream({ pull: (c) => c.error(new Error("lost")) });
  fetch.mock.mockImplementation(async () => new Response(dying));
  assert.equal(await ask(), "answer\nError\nlost");
});

test("a time limit begins when it is one's turn", async (context) => {
  const slots = new Slots(1);
  const slow = async (_, { signal }) => {
    await new Promise((resolve) => setTimeout(resolve, 60));
    signal.throwIfAborted();
    return new Response("ok");
  };
  context.mock.method(globalThis, "fetch", slow);
  const answers = await Promise.all([1, 2, 3].map(() => send(slots, "http://e.rw", "", "{}", 100, 100)));
  assert.deepEqual(answers, ["200\n\nok", "200\n\nok", "200\n\nok"]);
});
