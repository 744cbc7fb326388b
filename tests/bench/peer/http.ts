// What both peers share of HTTP: the request's body within its limit, answers, and RFC 9457 problems.

export const BODY_LIMIT_BYTES = 256 * 1024;

export interface Env {
  SUPABASE_SERVICE_ROLE_KEY?: string;
  INTERNAL_API_KEY?: string;
  MTN_WEBHOOK_SECRET?: string;
  MTN_WEBHOOK_SECRET_PREVIOUS?: string;
  POST_CALL_NOTIFY: Queue;
  SMS_INBOUND: Queue;
}

export class Problem extends Error {
  constructor(
    readonly type: string,
    readonly title: string,
    readonly status: number,
    readonly extra: Record<string, string> = {},
    readonly headers: Record<string, string> = {},
  ) {
    super(title);
  }
}

export const unauthorized = () => new Problem("unauthorized", "Not authorised", 401, {}, { "www-authenticate": "Bearer" });
export const notFound = () => new Problem("not-found", "There is nothing here", 404, { detail: "there is no such path here" });
export const methodNotAllowed = () =>
  new Problem("method-not-allowed", "This method is not supported here", 405, { hint: "Use one of the methods in the Allow header" }, { allow: "POST" });
export const badJson = (detail: string) =>
  new Problem("bad-json", "The body is not valid JSON", 400, { detail, hint: "Send one JSON object in UTF-8 with Content-Type: application/json" });
export const missingField = (field: string, hint: string) =>
  new Problem("missing-field", "A required field is missing", 422, { detail: `The field ${field} is missing or empty`, field, hint });
export const invalidField = (field: string, detail: string, hint: string) =>
  new Problem("invalid-field", "A field has an invalid value", 422, { detail, field, hint });
const tooLarge = () =>
  new Problem("too-large", "The body is too large", 413, { detail: `The body is larger than ${BODY_LIMIT_BYTES} bytes`, hint: "Send fewer items at once" });
const unavailable = () =>
  new Problem("unavailable", "The service cannot take this right now", 503, { detail: "Nothing was stored" }, { "retry-after": "30" });

/** One request on its way through a function. */
export interface Call {
  request: Request;
  env: Env;
  correlationId: string;
  /** What follows the function's own path, without slashes at its ends. */
  rest: string;
}

export function serve(name: string, handle: (call: Call) => Promise<Response>) {
  return {
    async fetch(request: Request, env: Env): Promise<Response> {
      const given = request.headers.get("x-correlation-id");
      const correlationId = given && isCorrelationId(given) ? given : crypto.randomUUID();
      try {
        return await handle({ request, env, correlationId, rest: restOf(new URL(request.url).pathname, name) });
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        log("info", "REQUEST_REFUSED", error.title, name, correlationId, { status: error.status, type: error.type });
        const body = {
          type: `https://ihuza.rw/errors/${error.type}`,
          title: error.title,
          status: error.status,
          ...error.extra,
          correlation_id: correlationId,
        };
        const headers = { "content-type": "application/problem+json", "x-correlation-id": correlationId, ...error.headers };
        return new Response(JSON.stringify(body), { status: error.status, headers });
      }
    },
  };
}

export function answer(status: number, body: unknown, correlationId: string): Response {
  const headers = { "content-type": "application/json", "x-correlation-id": correlationId };
  return new Response(JSON.stringify(body), { status, headers });
}

/** Each function answers at `/`, `/<name>` and `/functions/v1/<name>`. */
function restOf(pathname: string, name: string): string {
  let path = pathname.replace(/^\/+|\/+$/g, "");
  if (path.startsWith("functions/v1/")) path = path.slice("functions/v1/".length);
  if (path === name) return "";
  return path.startsWith(name + "/") ? path.slice(name.length + 1) : path;
}

export const isCorrelationId = (text: string) => /^[\x21-\x7e]{1,64}$/.test(text);

/** The raw body; never holds more than the limit in memory. */
export async function bodyOf(request: Request): Promise<Uint8Array> {
  const length = Number(request.headers.get("content-length") ?? NaN);
  if (length > BODY_LIMIT_BYTES) throw tooLarge();
  if (Number.isFinite(length)) return new Uint8Array(await request.arrayBuffer());
  const pieces: Uint8Array[] = [];
  let total = 0;
  for await (const piece of request.body ?? []) {
    total += piece.byteLength;
    if (total > BODY_LIMIT_BYTES) throw tooLarge();
    pieces.push(piece);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

/** Puts work on the queue as an envelope of version 1. */
export async function place(queue: Queue, correlationId: string, body: Record<string, unknown>): Promise<void> {
  const envelope = { v: 1, correlation_id: correlationId, first_seen_at: new Date().toISOString(), body };
  try {
    await queue.send(JSON.stringify(envelope), { contentType: "text" });
  } catch {
    throw unavailable();
  }
}

/** One structured event, one line; phone numbers are masked, null fields left out. */
export function log(
  level: string,
  event: string,
  message: string,
  fn: string,
  correlationId: string,
  fields: Record<string, string | number | null>,
): void {
  const line: Record<string, string | number> = { event, level, message: scrub(message), at: new Date().toISOString(), function: fn, correlation_id: correlationId };
  for (const [name, value] of Object.entries(fields)) {
    if (value === null) continue;
    line[name] = typeof value === "string" && !/_(?:id|ref|at)$/.test(name) ? scrub(value.slice(0, 500)) : value;
  }
  console.log(JSON.stringify(line));
}

/** Eight digits or more, with separators between them, are a phone number unless they are part of a UUID or a time. */
const NUMBERS =
  /[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d|\+?\d(?:[ \-.()/\u00a0\u202f\u2009\u2011]{0,2}\d){7,}/gi;

function scrub(text: string): string {
  return text.replace(NUMBERS, (found) => (/^[0-9a-f]{8}-|^\d{4}-\d\d-\d\dT/i.test(found) ? found : masked(found.replace(/[^+\d]/g, ""))));
}

/** The first five digits (and the `+`), four stars, the last three digits. */
export function masked(number: string): string {
  return number.slice(0, number.startsWith("+") ? 6 : 5) + "****" + number.slice(-3);
}
