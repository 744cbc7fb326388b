// The accept path of sms-inbound-webhook as TypeScript would have it: authenticate, parse, enqueue.
import { bearer, carrierSecrets, equalsAny, timestamped } from "./auth";
import { type Item, asText, field, firstField, firstText, object } from "./fields";
import { type Call, Problem, answer, bodyOf, invalidField, log, masked, methodNotAllowed, missingField, notFound, place, serve, unauthorized } from "./http";
import { keyword, language } from "./language";
import { PhoneError, address } from "./phone";
import { carrierTime } from "./time";

const NAME = "sms-inbound-webhook";
const MAX_ITEMS = 1000;
const MAX_TEXT_CHARS = 1530;

interface Sms {
  provider: "mtn";
  provider_message_id: string;
  from: string;
  to: string;
  text: string;
  received_at: string;
}

export default serve(NAME, async (call: Call) => {
  const { request, env } = call;
  if (request.method !== "POST") throw methodNotAllowed();
  const body = await bodyOf(request);
  await authenticate(call, body);

  const root = read(request.headers.get("content-type"), body);
  const messages: Sms[] = [];
  const ignored: string[] = [];
  const refused: Problem[] = [];
  for (const item of items(root)) {
    try {
      const found = firstField(item, ["deliveryStatus", "deliveryInfoNotification"]) === undefined ? await message(item) : "delivery_report";
      if (typeof found === "string") ignored.push(found);
      else messages.push(found);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      refused.push(error);
    }
  }
  for (const reason of ignored) log("info", "SMS_INBOUND_REFUSED", `an inbound SMS is left alone: ${reason}`, NAME, call.correlationId, { reason });

  const accepted: string[] = [];
  for (const sms of messages) {
    const correlationId = messages.length === 1 ? call.correlationId : crypto.randomUUID();
    const found = keyword(sms.text);
    await place(env.SMS_INBOUND, correlationId, {
      ...sms,
      channel: "sms",
      user_id: null,
      display_name: null,
      wants_answer: true,
      reported_at: null,
      voice_note: null,
      unsigned: false,
      keyword: found?.keyword ?? null,
      keyword_may_answer: found?.mayAnswer ?? false,
      language_hint: found?.locale ?? language(sms.text),
    });
    log("info", "SMS_INBOUND_RECEIVED", "an SMS was accepted", NAME, correlationId, {
      sender: masked(sms.from),
      provider: sms.provider,
      characters: [...sms.text].length,
    });
    accepted.push(correlationId);
  }
  if (refused.length > 0) {
    if (accepted.length === 0) throw refused[0];
    log("warn", "SMS_INBOUND_REFUSED", refused[0].title, NAME, call.correlationId, { type: refused[0].type });
  }
  const shown = { status: "accepted", messages: accepted.length, ignored: ignored.length, correlation_ids: accepted };
  return answer(200, shown, call.correlationId);
});

async function authenticate({ request, env, rest }: Call, body: Uint8Array): Promise<void> {
  const secrets = carrierSecrets(env);
  const token = rest.startsWith("mtn/") ? rest.slice("mtn/".length) : undefined;
  if (token === undefined && rest !== "") throw notFound();
  const signature = request.headers.get("x-signature");
  const known = signature
    ? await timestamped(signature, request.headers.get("x-timestamp"), body, secrets)
    : (token !== undefined && equalsAny(token, secrets)) || bearer(request.headers.get("authorization"), secrets);
  if (!known) throw unauthorized();
}

/** JSON by content type or look; else a form. */
function read(contentType: string | null, body: Uint8Array): Item {
  const isForm = contentType?.toLowerCase().includes("x-www-form-urlencoded") ?? false;
  const start = body.find((byte) => byte > 0x20 && byte !== 0xef && byte !== 0xbb && byte !== 0xbf);
  if (start === 0x7b || (!isForm && start !== 0x5b)) return object(body);
  const text = new TextDecoder().decode(body);
  if (start === 0x5b) return object(new TextEncoder().encode(`{"items":${text}}`));
  const form: Item = {};
  for (const [name, value] of new URLSearchParams(text)) form[name] ??= value.replaceAll("\0", "");
  if (Object.keys(form).length === 0) throw new Problem("bad-body", "The body cannot be read", 400, { detail: "The form is empty" });
  return form;
}

function items(root: Item): Item[] {
  const unwrap = (wrapped: unknown) => (isItem(wrapped) ? (field(wrapped, "inboundSMSMessage") ?? wrapped) : wrapped);
  let found: unknown = unwrap(firstField(root, ["inboundSMSMessageNotification", "inboundSMSMessageList"])) ?? root;
  if (found === root) {
    for (const name of ["items", "data", "messages", "reports"]) {
      const nested = field(root, name);
      if (typeof nested === "object" && nested !== null) {
        found = unwrap(nested);
        break;
      }
    }
  }
  return Array.isArray(found) ? found.filter(isItem).slice(0, MAX_ITEMS) : [found as Item];
}

const isItem = (value: unknown): value is Item => typeof value === "object" && value !== null && !Array.isArray(value);

/** The message, or why it is left alone. */
async function message(item: Item): Promise<Sms | string> {
  const from = firstText(item, ["from", "senderAddress", "msisdn", "sender", "source", "source_addr"]);
  if (from === undefined) throw missingField("from", "Name the sender as +250...");
  const sender = senderOf(from);
  if (sender.kind !== "subscriber") return sender.kind;
  const to = receiver(
    firstText(item, ["to", "receiverAddress", "destinationAddress", "serviceCode", "registrationId", "shortCode", "recipient", "destination"]),
  );
  const written = textOf(item);
  if (written === undefined) throw missingField("message", "Put the text of the SMS into message");
  const text = clip(written.trim(), MAX_TEXT_CHARS);
  if (text === "") return "empty_text";
  const time = firstText(item, ["dateTime", "timestamp", "date", "created", "receivedAt"]);
  const sentAt = time === undefined ? undefined : carrierTime(time);
  const id = firstText(item, ["messageId", "messageID", "message_id", "id", "transactionId", "linkId"]);
  return {
    provider: "mtn",
    provider_message_id: id === undefined ? await derivedId(sender.text, to, text, sentAt) : clip(id, 128),
    from: sender.text,
    to,
    text,
    received_at: new Date(sentAt ?? Date.now()).toISOString(),
  };
}

function senderOf(from: string) {
  try {
    return address(from);
  } catch (error) {
    if (!(error instanceof PhoneError)) throw error;
    throw invalidField("from", error.message, "Name the sender in E.164 form, such as +250788123456");
  }
}

function receiver(given: string | undefined): string {
  if (given === undefined) return "";
  try {
    return address(given).text;
  } catch {
    return clip(given.trim(), 32);
  }
}

/** Present but empty is an empty text; absent is nothing. */
function textOf(item: Item): string | undefined {
  for (const name of ["message", "text", "content", "body"]) {
    const found = field(item, name);
    if (found === undefined) continue;
    const inner = isItem(found) ? firstField(found, ["body", "text", "content"]) : found;
    const text = typeof inner === "string" ? inner : asText(inner);
    if (text !== undefined) return text;
  }
  return undefined;
}

/** Without an id of the provider's, the same text from the same number at the same time is the same message. */
async function derivedId(from: string, to: string, text: string, sentAt: number | undefined): Promise<string> {
  const time = sentAt ?? Math.floor(Date.now() / 60_000);
  const kind = sentAt === undefined ? "minute" : "provider time";
  const encoder = new TextEncoder();
  const number = new Uint8Array(8);
  new DataView(number.buffer).setBigInt64(0, BigInt(time));
  const parts = [...["mtn", from, to, text, kind].map((part) => encoder.encode(part)), number];
  const framed = new Uint8Array(parts.reduce((sum, part) => sum + 8 + part.length, 0));
  let at = 0;
  for (const part of parts) {
    new DataView(framed.buffer).setBigUint64(at, BigInt(part.length));
    framed.set(part, at + 8);
    at += 8 + part.length;
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", framed));
  return "sha256:" + Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The first `max` characters. */
const clip = (text: string, max: number) => (text.length <= max ? text : [...text].slice(0, max).join(""));
