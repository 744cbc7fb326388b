// Reading JSON bodies of strangers: both spellings of every name, odd types forgiven, no NUL character kept.
import { badJson } from "./http";

export type Item = Record<string, unknown>;

const decoder = new TextDecoder("utf-8", { fatal: true });

export function object(body: Uint8Array): Item {
  let text: string;
  let value: unknown;
  try {
    text = decoder.decode(body);
    // Only the escape can bring a NUL: a raw one is no JSON.
    value = text.includes("\\u0000") ? JSON.parse(text, withoutNul) : JSON.parse(text);
  } catch (error) {
    throw badJson(`JSON is broken: ${(error as Error).message}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw badJson("The body is JSON, but not an object");
  return value as Item;
}

function withoutNul(_: string, value: unknown): unknown {
  if (typeof value === "string") return value.replaceAll("\0", "");
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key.replaceAll("\0", ""), inner]));
}

const camelNames = new Map<string, string>();

function camel(name: string): string {
  let found = camelNames.get(name);
  if (found === undefined) camelNames.set(name, (found = name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase())));
  return found;
}

export const field = (item: Item, name: string): unknown => item[name] ?? item[camel(name)] ?? undefined;

/** A scalar as trimmed text; blank is absent. */
export function asText(value: unknown): string | undefined {
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  return typeof value === "string" ? value.trim() || undefined : undefined;
}

export const text = (item: Item, name: string) => asText(field(item, name));

/** The first of several names with a scalar, or with a list whose first item is one. */
export function firstText(item: Item, names: string[]): string | undefined {
  for (const name of names) {
    const value = field(item, name);
    const found = asText(Array.isArray(value) ? value[0] : value);
    if (found !== undefined) return found;
  }
  return undefined;
}

export function firstField(item: Item, names: string[]): unknown {
  for (const name of names) {
    const value = field(item, name);
    if (value !== undefined) return value;
  }
  return undefined;
}
