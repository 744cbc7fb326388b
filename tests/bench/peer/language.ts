// STOP, START and HELP, and the language of a short text.
import { KEYWORDS, type Keyword, LANGUAGES, type Locale, POLITE } from "./words";

/** Lower-case letters without any mark, so that `ARRÊT` and `arret` are one. */
const baseLetters = (text: string) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

export interface Found {
  keyword: Keyword;
  locale: Locale | null;
  mayAnswer: boolean;
}

/** Words that may as well answer a question. */
const MAY_ANSWER = new Set(["cancel", "end", "remove", "yes", "both", "les deux", "byombi", "zote mbili"]);

export function keyword(text: string): Found | null {
  if (text.length > 160 || [...text].length > 80) return null;
  const folded = baseLetters(text);
  let words = folded.split(/[^a-z0-9]+/).filter(Boolean);
  if (words.length === 0 || /[^\x00-\x7f]/.test(folded.replace(/[^\p{L}\p{N}]/gu, ""))) return null;
  for (let polite = strip(words); polite; polite = strip(words)) words = polite;
  const whole = words.filter((word, at) => word !== words[at - 1]).join(" ");
  const known = KEYWORDS.get(whole);
  const mayAnswer = MAY_ANSWER.has(whole);
  if (known) return { keyword: known[0], locale: known[1], mayAnswer };
  return whole === "cancel" || whole === "end" ? { keyword: "stop", locale: null, mayAnswer } : null;
}

function strip(words: string[]): string[] | undefined {
  for (const phrase of POLITE) {
    if (words.length <= phrase.length) continue;
    const rest = words.length - phrase.length;
    if (phrase.every((word, at) => words[rest + at] === word)) return words.slice(0, rest);
    if (phrase.every((word, at) => words[at] === word)) return words.slice(phrase.length);
  }
  return undefined;
}

export function language(text: string): Locale | null {
  const words = baseLetters(text)
    .split(/[^\p{L}\p{N}]+/u)
    .filter(Boolean)
    .slice(0, 60);
  let best: Locale | null = null;
  let highest = 0;
  let rivals = 0;
  for (const { locale, strong, weak, prefixes } of LANGUAGES) {
    let score = 0;
    for (const word of words) {
      if (strong.has(word)) score += 3;
      else if (weak.has(word)) score += 1;
      else if (word.length >= 5 && prefixes.some((prefix) => word.startsWith(prefix))) score += 1;
    }
    if (score > highest) [best, highest, rivals] = [locale, score, 1];
    else if (score === highest) rivals += 1;
  }
  return highest > 0 && rivals === 1 ? best : null;
}
