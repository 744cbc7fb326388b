// Phone numbers in E.164 form; for +250 by the national plan of Rwanda.

export class PhoneError extends Error {}

const IGNORED = /[ \-.()/\t\u00a0\u202f\u2000-\u200f\u2010-\u2015\u2060\ufeff\u202a-\u202e\u2066-\u2069]/g;

export function e164(text: string): string {
  const { plus, digits } = clean(text);
  const whole = international(plus, digits);
  check(whole);
  return "+" + whole;
}

/** As carriers write numbers: digits without `+` are international. */
function msisdn(text: string): string {
  const { plus, digits } = clean(text);
  const rwandan = plus || digits.startsWith("00") || /^2507\d{8}$/.test(digits) || /^0?7\d{7,9}$/.test(digits);
  if (rwandan) return e164(text);
  if (digits.length < 10 || digits.startsWith("0")) throw new PhoneError("phone number is missing its country code: write it as +250..., not 07...");
  return e164("+" + digits);
}

function bare(text: string): string {
  return text.trim().replace(/^(?:tel|whatsapp|sips?|sms):/i, "").split(/[@;]/, 1)[0].trim();
}

function clean(text: string): { plus: boolean; digits: string } {
  const kept = bare(text)
    .slice(0, 64)
    .replace(IGNORED, "")
    .replace(/[\uff10-\uff19\u0660-\u0669\u06f0-\u06f9]/g, (digit) => String(digit.charCodeAt(0) & 0xf));
  const plus = /^[+\uff0b]/.test(kept);
  const digits = plus ? kept.slice(1) : kept;
  const wrong = /\D/.exec(digits);
  if (wrong) throw new PhoneError(`phone number has '${wrong[0]}' at position ${wrong.index}: only digits may follow the +`);
  if (!digits) throw new PhoneError("phone number is empty: write it as +250...");
  return { plus, digits };
}

function international(plus: boolean, digits: string): string {
  const withoutTrunkZero = (number: string) => (number.length === 13 && number.startsWith("2500") ? "250" + number.slice(4) : number);
  if (plus) return withoutTrunkZero(digits);
  if (digits.startsWith("00")) return withoutTrunkZero(digits.slice(2));
  if (digits.startsWith("2507") && digits.length === 12) return digits;
  const national = digits.startsWith("0") ? digits.slice(1) : digits;
  if (/^7\d{7,9}$/.test(national)) return "250" + national;
  throw new PhoneError("phone number is missing its country code: write it as +250..., not 07...");
}

function check(digits: string): void {
  if (digits.startsWith("0")) throw new PhoneError("phone number has a country code that starts with 0: no country has one");
  const premium = /^(?:881|882|883|979)/.exec(digits);
  if (premium) throw new PhoneError(`phone number is in the satellite or premium range ${premium[0]}: we do not send there`);
  if (digits.startsWith("250")) {
    const national = digits.slice(3);
    if (national.length !== 9) {
      throw new PhoneError(`Rwandan phone number has ${national.length} digits after +250, there must be 9: check for a missing or doubled digit`);
    }
    if (!/^(?:7[237-9]|[289])/.test(national)) {
      throw new PhoneError(`Rwandan phone numbers do not begin with 0${national.slice(0, 2)}: mobiles begin with 072, 073, 077, 078 or 079`);
    }
  } else if (digits.length < 8 || digits.length > 15) {
    throw new PhoneError(`phone number has ${digits.length} digits, E.164 allows 8 to 15: check for a missing or doubled part`);
  }
}

export type Address = { kind: "subscriber" | "short_code" | "sender_name"; text: string } | { kind: "number_withheld"; text: "" };

const WITHHELD = new Set(["anonymous", "unavailable", "restricted", "private", "unknown", "withheld"]);

export function address(text: string): Address {
  const name = bare(text);
  if (!name || WITHHELD.has(name.toLowerCase())) return { kind: "number_withheld", text: "" };
  if (/^\d{3,6}$/.test(name)) return { kind: "short_code", text: name };
  if (/^(?=.*[A-Za-z])[A-Za-z0-9 ]{1,11}$/.test(name)) return { kind: "sender_name", text: name };
  return { kind: "subscriber", text: msisdn(name) };
}
