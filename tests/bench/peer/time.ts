// Times as carriers write them; without a zone they are Kigali's, UTC+2 all year.

const KIGALI_MS = 120 * 60_000;
const ISO = /^(\d{4})[-/](\d\d)[-/](\d\d)[Tt ](\d\d?):(\d\d)(?::(\d\d))?(?:\.(\d+))?\s*(Z|z|[+-]\d\d(?::?\d\d)?)?$/;

/** Milliseconds since 1970. */
export function carrierTime(given: string): number | undefined {
  const text = given.trim();
  if (/^\d+$/.test(text)) return digits(text);
  const found = ISO.exec(text);
  if (!found) return undefined;
  const [, year, month, day, hour, minute, second, fraction, zone] = found;
  const at = utc(+year, +month, +day, +hour, +minute, +(second ?? 0));
  return at === undefined ? undefined : plausible(at + Number((fraction ?? "").padEnd(3, "0").slice(0, 3)) - offset(zone));
}

function offset(zone: string | undefined): number {
  if (zone === undefined) return KIGALI_MS;
  if (zone === "Z" || zone === "z") return 0;
  const minutes = Number(zone.slice(1, 3)) * 60 + Number(zone.slice(3).replace(":", "") || 0);
  return (zone[0] === "-" ? -minutes : minutes) * 60_000;
}

function digits(text: string): number | undefined {
  const pair = (at: number) => Number(text.slice(at, at + 2));
  const compact = (from: number, century: number) => {
    const at = utc(century + pair(from), pair(from + 2), pair(from + 4), pair(from + 6), pair(from + 8), pair(from + 10));
    return at === undefined ? undefined : plausible(at - KIGALI_MS);
  };
  switch (text.length) {
    case 10:
      return text.startsWith("2") ? (compact(0, 2000) ?? plausible(Number(text) * 1000)) : plausible(Number(text) * 1000);
    case 12:
      return compact(0, 2000);
    case 13:
      return plausible(Number(text));
    case 14:
      return compact(2, pair(0) * 100);
    default:
      return undefined;
  }
}

function utc(year: number, month: number, day: number, hour: number, minute: number, second: number): number | undefined {
  if (hour > 23 || minute > 59 || second > 60) return undefined;
  const at = Date.UTC(year, month - 1, day, hour, minute, Math.min(second, 59));
  return new Date(at).getUTCMonth() === month - 1 ? at : undefined;
}

const plausible = (at: number) => (at >= 0 && at < 253_402_300_800_000 ? at : undefined);
