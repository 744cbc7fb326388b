// Loaded in front of a function: counts every call between wasm and JavaScript, by name. Asked over HTTP, it shows the
// counts since it was last asked. (A plain script, because its imports stay as they are.)
import "./count.js";
export { default } from "./index.js";

export const Crossings = {
  fetch() {
    const counts = globalThis.crossings;
    globalThis.crossings = {};
    return Response.json(counts);
  },
};
