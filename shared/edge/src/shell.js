// The little that is JavaScript: whatever would otherwise cross between wasm and the runtime value by value. One crossing
// brings a whole request in, one takes the whole decision out; why, and what it saves, is in docs/design-notes.md.
//
// Nothing is decided here. Parts of a text are separated by a line feed, which neither a header, nor a URL, nor serialised
// JSON can contain; what may contain one comes last.

const PART = "\n";

const NOTHING = new Uint8Array(0);
const TEXT = { contentType: "text" };

/** The values of these variables and secrets, separated by NUL; empty where there is none or where it is a binding. */
export function variables(env, names) {
  const text = (value) => (value === undefined || typeof value === "object" ? "" : String(value));
  return names
    .split(PART)
    .map((name) => text(env[name]))
    .join("\0");
}

/** Writes one line to the log: `level` is a method of `console`. */
export function tell(level, line) {
  console[level](line);
}

/**
 * The door of an endpoint: brings in the named headers and at most `limit` bytes of body.
 *
 * `decide(env, head, body)` gives the decision, at once or as a promise. A decision may ask for keys to be counted first; where it
 * does not stand by itself then, it is made again, with all that was counted. `refused(env, queue, text, why)` is asked when a
 * queue does not take a text, and gives an empty text when the work is safe elsewhere, or the decision that replaces the first one.
 */
export class Door {
  constructor(names, limit, decide, refused) {
    this.names = names.split(PART);
    this.limit = limit;
    this.decide = decide;
    this.refused = refused;
    this.uncounted = false;
  }

  async serve(request, env) {
    const { method, headers } = request;
    let body = NOTHING;
    let state = "whole";
    if (method !== "GET" && method !== "HEAD") {
      const announced = headers.get("content-length");
      try {
        if (announced !== null && Number(announced) <= this.limit) body = new Uint8Array(await request.arrayBuffer());
        else body = await bounded(request, announced, this.limit);
        if (body === null) [body, state] = [NOTHING, "large"];
      } catch {
        [body, state] = [NOTHING, "cut"];
      }
    }
    let head = PART + state + PART + method + PART + request.url;
    for (const name of this.names) head += PART + (headers.get(name) ?? "");
    let parts;
    for (const counts = []; ; ) {
      let decision = this.decide(env, counts + head, body);
      if (typeof decision !== "string") decision = await decision;
      parts = decision.split(PART);
      if (parts[4] === "0") break;
      const [limiter, settles, ...keys] = parts.slice(FIXED, start(parts));
      const count = await counted(env, limiter, keys);
      if (settles === "1" && this.stands(count)) break;
      counts.push(count);
    }
    if (parts[3] !== "0") {
      const instead = await this.put(env, parts);
      if (instead !== "") parts = instead.split(PART);
    }
    return answer(parts);
  }

  /** Whether all are within their limits. That nobody counts is told to `decide` once. */
  stands(count) {
    if (count.includes("?") && !this.uncounted) return !(this.uncounted = true);
    return !count.includes("1");
  }

  /** Puts the texts of a decision on their queues; gives an empty text, or the decision that replaces it. */
  async put(env, parts) {
    const texts = [];
    for (let at = start(parts) + 2 * parts[1] + 2 * parts[2], left = parts[3]; left > 0; left--, at += 2) texts.push([parts[at], parts[at + 1]]);
    let instead = "";
    for (const [queue, some] of slices(texts)) {
      try {
        if (some.length === 1) await env[queue].send(some[0], TEXT);
        else await env[queue].sendBatch(some.map((body) => ({ body, ...TEXT })));
      } catch (error) {
        for (const text of some) instead ||= await this.refused(env, queue, text, reason(error));
      }
    }
    return instead;
  }
}

// What one `sendBatch` takes: 100 messages and 256 KB (Cloudflare docs, queues/platform/limits); a character may be three
// bytes.
const BATCH_MESSAGES = 100;
const BATCH_CHARACTERS = 80_000;

function slices(texts) {
  const all = [];
  let length = 0;
  for (const [queue, text] of texts) {
    length += text.length;
    const last = all.at(-1);
    if (last?.[0] === queue && last[1].length < BATCH_MESSAGES && length <= BATCH_CHARACTERS) {
      last[1].push(text);
    } else {
      all.push([queue, [text]]);
      length = text.length;
    }
  }
  return all;
}

// A decision: status, number of headers, of log lines, of texts for queues, of parts about what is to be counted first; these
// (the limiter, whether the decision stands if nobody is over, keys); then headers, lines and texts, each in two parts; then the
// body.
const FIXED = 5;

/** Where the headers of a decision begin. */
function start(parts) {
  return FIXED + Number(parts[4]);
}

function answer(parts) {
  let at = start(parts);
  const headers = {};
  for (const end = at + 2 * parts[1]; at < end; at += 2) headers[parts[at]] = parts[at + 1];
  for (const end = at + 2 * parts[2]; at < end; at += 2) console[parts[at]](parts[at + 1]);
  at += 2 * parts[3];
  const body = at === parts.length - 1 ? parts[at] : parts.slice(at).join(PART);
  return new Response(body, { status: Number(parts[0]), headers });
}

function reason(error) {
  return String(error?.message ?? error);
}

/** The body, or null when it is longer than `limit` bytes; of such a body no more than that is held. */
async function bounded(message, announced, limit) {
  if (Number(announced) > limit) {
    message.body?.cancel().catch(() => {});
    return null;
  }
  if (announced !== null) {
    const bytes = new Uint8Array(await message.arrayBuffer());
    return bytes.length > limit ? null : bytes;
  }
  if (message.body === null) return NOTHING;
  const pieces = [];
  let length = 0;
  const reader = message.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > limit) {
      reader.cancel().catch(() => {});
      return null;
    }
    pieces.push(value);
  }
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}

/** Lets `width` requests of one invocation out at a time. */
export class Slots {
  constructor(width) {
    this.free = width;
    this.waiting = [];
  }

  async enter() {
    if (this.free > 0) this.free--;
    else await new Promise((resolve) => this.waiting.push(resolve));
  }

  leave() {
    const next = this.waiting.shift();
    if (next) next();
    else this.free++;
  }
}

/**
 * One request to the outside; `headers` are names and values in turn. With `slots` it waits for its turn, and the time limit
 * starts then.
 *
 * Gives `status, retry-after, body`, or `connect | answer | long, name, message` where there is no whole answer.
 */
export async function send(slots, url, headers, body, timeoutMs, limit, method = "POST") {
  await slots?.enter();
  try {
    const got = await exchange(method, url, headers, body, AbortSignal.timeout(timeoutMs), limit);
    return typeof got === "string" ? got : got.head + new TextDecoder().decode(got.bytes);
  } finally {
    slots?.leave();
  }
}

/** `{ok, head, bytes}` of a whole answer, `head` being its status and `Retry-After`; else the text that says why there is none. */
async function exchange(method, url, headers, body, signal, limit) {
  let stage = "connect";
  try {
    // A redirect would carry our keys to another host.
    const init = { method, headers: named(headers), redirect: "manual", signal };
    if (method !== "GET") init.body = body;
    const response = await fetch(url, init);
    stage = "answer";
    // A compressed answer announces its compressed length: whatever it says, it is read piece by piece.
    const bytes = await bounded(response, null, limit);
    if (bytes === null) return "long" + PART + PART;
    return { ok: response.ok, head: response.status + PART + (response.headers.get("retry-after") ?? "") + PART, bytes };
  } catch (error) {
    return stage + PART + (error?.name ?? "") + PART + (error?.message ?? "");
  }
}

function named(headers) {
  const parts = headers.split(PART);
  const named = {};
  for (let i = 0; i + 1 < parts.length; i += 2) named[parts[i]] = parts[i + 1];
  return named;
}

/**
 * Fetches what is at `url` and hands it on to `to` as the `file` of a form with these `fields`, names and values in turn; at
 * most `fileLimit` bytes, which never enter wasm.
 *
 * Gives `fetched` or `handed`, for the step that ended it, and then what `send` gives.
 */
export async function forward(slots, url, headers, fileName, fileLimit, to, toHeaders, fields, timeoutMs, limit) {
  await slots?.enter();
  try {
    const signal = AbortSignal.timeout(timeoutMs);
    const file = await exchange("GET", url, headers, "", signal, fileLimit);
    if (typeof file === "string") return "fetched" + PART + file;
    if (!file.ok) return "fetched" + PART + file.head;
    const form = new FormData();
    const parts = fields.split(PART);
    for (let i = 0; i + 1 < parts.length; i += 2) form.append(parts[i], parts[i + 1]);
    form.append("file", new File([file.bytes], fileName));
    const got = await exchange("POST", to, toHeaders, form, signal, limit);
    return "handed" + PART + (typeof got === "string" ? got : got.head + new TextDecoder().decode(got.bytes));
  } finally {
    slots?.leave();
  }
}

/**
 * Counts each key at a rate limiter. Gives a character for each: `0` within the limit, `1` over it, `?` where nobody counted.
 */
async function counted(env, limiter, keys) {
  const counter = env[limiter];
  if (counter === undefined) return "?".repeat(keys.length);
  const one = async (key) => {
    try {
      return (await counter.limit({ key })).success ? "0" : "1";
    } catch {
      return "?";
    }
  };
  return (await Promise.all(keys.map(one))).join("");
}

/** Puts a text on a queue; gives an empty text, or why it did not go. */
export async function enqueue(env, queue, text, delaySeconds) {
  try {
    await env[queue].send(text, delaySeconds > 0 ? { contentType: "text", delaySeconds } : TEXT);
    return "";
  } catch (error) {
    return reason(error);
  }
}
