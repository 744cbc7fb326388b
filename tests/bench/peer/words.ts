// Keywords and small words of the four languages, as the core knows them.

export type Locale = "en" | "fr" | "rw" | "sw";
export type Keyword = "stop" | "start" | "help";

const split = (words: string) => new Set(words.split(" "));

/** Said besides a keyword out of politeness, longest phrase first. */
export const POLITE: string[][] = [
  ["s", "il", "vous", "plait"],
  ["s", "il", "te", "plait"],
  ["thank", "you", "very", "much"],
  ["thank", "you"],
  ["thanks"],
  ["thx"],
  ["please"],
  ["pls"],
  ["merci"],
  ["svp"],
  ["murakoze", "cyane"],
  ["murakoze"],
  ["mwihangane"],
  ["asante", "sana"],
  ["asante"],
  ["tafadhali"],
  ["now"],
];

export const KEYWORDS = new Map<string, [Keyword, Locale | null]>([
  ["stop", ["stop", null]],
  ["stopall", ["stop", null]],
  ["stop all", ["stop", null]],
  ["stop sms", ["stop", null]],
  ["stop messages", ["stop", "en"]],
  ["unsubscribe", ["stop", "en"]],
  ["quit", ["stop", "en"]],
  ["revoke", ["stop", "en"]],
  ["optout", ["stop", "en"]],
  ["opt out", ["stop", "en"]],
  ["remove", ["stop", "en"]],
  ["remove me", ["stop", "en"]],
  ["arret", ["stop", "fr"]],
  ["arreter", ["stop", "fr"]],
  ["arretez", ["stop", "fr"]],
  ["desabonner", ["stop", "fr"]],
  ["desinscrire", ["stop", "fr"]],
  ["hagarika", ["stop", "rw"]],
  ["hagarara", ["stop", "rw"]],
  ["muhagarike", ["stop", "rw"]],
  ["kuvamo", ["stop", "rw"]],
  ["acha", ["stop", "sw"]],
  ["sitisha", ["stop", "sw"]],
  ["simama", ["stop", "sw"]],
  ["ondoa", ["stop", "sw"]],
  ["start", ["start", null]],
  ["unstop", ["start", null]],
  ["subscribe", ["start", "en"]],
  ["reprendre", ["start", "fr"]],
  ["debut", ["start", "fr"]],
  ["tangira", ["start", "rw"]],
  ["anza", ["start", "sw"]],
  ["help", ["help", null]],
  ["info", ["help", null]],
  ["aide", ["help", "fr"]],
  ["ubufasha", ["help", "rw"]],
  ["fasha", ["help", "rw"]],
  ["msaada", ["help", "sw"]],
]);

export interface Language {
  locale: Locale;
  strong: Set<string>;
  weak: Set<string>;
  /** Beginnings of verbs in the first person. */
  prefixes: string[];
}

export const LANGUAGES: Language[] = [
  {
    locale: "en",
    strong: split(
      "the and you please thank thanks yes hello want what when where how much price house would could with " +
      "from have need this that your still available tomorrow today call send any updates are not for " +
      "change",
    ),
    weak: split("i my is it to of in me a we can do no hi on at"),
    prefixes: [],
  },
  {
    locale: "fr",
    strong: split(
      "le les je vous est et bonjour bonsoir merci oui une des pour combien quand avec mon plait veux " +
      "voudrais maison prix c'est cela dans sur pas demain aujourd hui changer toujours disponible ou suis " +
      "avez cherche louer acheter ce svp du",
    ),
    weak: split("la de un ma il en au ne que qui non a l d j c s"),
    prefixes: [],
  },
  {
    locale: "rw",
    strong: split(
      "muraho mwaramutse mwiriwe murakoze yego oya inzu amafaranga nde ubu ejo gute angahe kubona nshaka " +
      "ndashaka bite amakuru cyangwa kuri ariko nkeneye mfite rwose neza gukodesha kugura munsi mwambwira " +
      "ese iracyahari birashoboka guhindura ingengo imari ntabwo cyane none hehe ryari kugira ngo yanjye " +
      "wanjye byiza ndagushimira turakoherereza ndabyemeye oyaa kandi mbese iyo iyi uyu",
    ),
    weak: split("ni mu ku i y bya ry wa ya"),
    prefixes: ["nda", "ndu", "ndi", "nsha", "mwa", "twa", "kugi", "uko", "ibi", "ama", "umu", "aba", "iki"],
  },
  {
    locale: "sw",
    strong: split(
      "habari asante ndiyo hapana nataka nyumba bei ninaomba naomba tafadhali leo kesho jambo karibu " +
      "kubadilisha bajeti ngapi gani yangu kuhusu niambie lini wapi mimi sana sawa hii kwa bado ipo " +
      "inapatikana ningependa natafuta kununua kukodisha pesa wewe hujambo shikamoo mambo lakini au kwamba " +
      "je nini vipi",
    ),
    weak: split("ni ya wa katika za la cha ku"),
    prefixes: ["nina", "nime", "nita", "nili", "naom", "una", "ume", "tuna", "wana", "hak", "kwa"],
  },
];
