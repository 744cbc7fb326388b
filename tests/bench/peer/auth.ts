// Proof of who sent a request. Comparisons take the same time whatever was presented.
import type { Env } from "./http";

const encoder = new TextEncoder();
/** Longest secret. Texts are compared in buffers of this size, so that time tells neither place nor length. */
const WIDTH = 1024;
const padded = new Map<string, Uint8Array>();

function equal(presented: string, expected: string): boolean {
  let wanted = padded.get(expected);
  if (!wanted) padded.set(expected, (wanted = pad(expected)));
  const same = crypto.subtle.timingSafeEqual(pad(presented), wanted);
  return same && presented.length === expected.length;
}

function pad(text: string): Uint8Array {
  const buffer = new Uint8Array(WIDTH);
  encoder.encodeInto(text, buffer);
  return buffer;
}

export function equalsAny(presented: string, secrets: (string | undefined)[]): boolean {
  let found = false;
  for (const secret of secrets) if (secret) found = equal(presented, secret) || found;
  return found;
}

export function bearer(header: string | null, secrets: (string | undefined)[]): boolean {
  const token = /^\s*bearer +(\S.*?)\s*$/i.exec(header ?? "")?.[1];
  return token !== undefined && equalsAny(token, secrets);
}

export const serviceKeys = (env: Env) => [env.SUPABASE_SERVICE_ROLE_KEY, env.INTERNAL_API_KEY];
export const carrierSecrets = (env: Env) => [env.MTN_WEBHOOK_SECRET, env.MTN_WEBHOOK_SECRET_PREVIOUS];

const TOLERANCE_S = 300;
const hmacKeys = new Map<string, Promise<CryptoKey>>();

function hmacKey(secret: string): Promise<CryptoKey> {
  let key = hmacKeys.get(secret);
  if (!key) {
    key = crypto.subtle.importKey("raw", encoder.encode(secret), { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
    hmacKeys.set(secret, key);
  }
  return key;
}

/** `sha256=<hex>` over `{timestamp}.{body}`, the timestamp within 300 s. */
export async function timestamped(signature: string, timestamp: string | null, body: Uint8Array, secrets: (string | undefined)[]): Promise<boolean> {
  const stamp = timestamp?.trim() ?? "";
  if (!/^\d{1,12}$/.test(stamp) || Math.abs(Math.floor(Date.now() / 1000) - Number(stamp)) > TOLERANCE_S) return false;
  const hex = /^sha256=((?:[0-9a-f]{2})+)$/i.exec(signature.trim())?.[1];
  if (!hex) return false;
  const given = new Uint8Array(hex.length / 2);
  for (let at = 0; at < given.length; at++) given[at] = parseInt(hex.slice(2 * at, 2 * at + 2), 16);
  const head = encoder.encode(stamp + ".");
  const signed = new Uint8Array(head.length + body.length);
  signed.set(head);
  signed.set(body, head.length);
  let good = false;
  for (const secret of secrets) {
    if (secret) good = (await crypto.subtle.verify("HMAC", await hmacKey(secret), given, signed)) || good;
  }
  return good;
}
