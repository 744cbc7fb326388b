// Makes every instance of wasm count its imports (`out`) and exports (`in`) as they are called.
globalThis.crossings = {};
const Instance = WebAssembly.Instance;

const counted = (direction, name, call) =>
  function (...given) {
    const key = `${direction} ${name}`;
    globalThis.crossings[key] = (globalThis.crossings[key] ?? 0) + 1;
    return call.apply(this, given);
  };

const wrap = (direction, things) =>
  Object.fromEntries(Object.entries(things).map(([name, thing]) => [name, typeof thing === "function" ? counted(direction, name, thing) : thing]));

WebAssembly.Instance = function (module, imports) {
  const wrapped = Object.fromEntries(Object.entries(imports).map(([name, things]) => [name, wrap("out", things)]));
  return { exports: wrap("in", new Instance(module, wrapped).exports) };
};
