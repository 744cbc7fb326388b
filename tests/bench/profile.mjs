// Samples one Worker of a running workerd through its inspector and prints where the time went.
//
//   node profile.mjs <inspector port> <service> <seconds>
const [port, service, seconds] = process.argv.slice(2);
const SHOWN = 30;
const INTERVAL_US = 100;

const socket = new WebSocket(`ws://127.0.0.1:${port}/${service}`);
await new Promise((resolve, reject) => {
  socket.onopen = resolve;
  socket.onerror = () => reject(new Error(`the inspector of ${service} does not answer`));
});

let next = 0;
const waiting = new Map();
socket.onmessage = ({ data }) => {
  const { id, result, error } = JSON.parse(data);
  const call = waiting.get(id);
  waiting.delete(id);
  if (error) call?.reject(new Error(error.message));
  else call?.resolve(result);
};
const order = (method, params = {}) =>
  new Promise((resolve, reject) => {
    waiting.set(++next, { resolve, reject });
    socket.send(JSON.stringify({ id: next, method, params }));
  });

await order("Profiler.enable");
await order("Profiler.setSamplingInterval", { interval: INTERVAL_US });
await order("Profiler.start");
await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
const { profile } = await order("Profiler.stop");
socket.close();

const self = new Map();
let total = 0;
const nodes = new Map(profile.nodes.map((node) => [node.id, node]));
profile.samples.forEach((id, at) => {
  const { functionName, url } = nodes.get(id).callFrame;
  if (functionName === "(idle)" || functionName === "(program)") return;
  const kind = url.startsWith("wasm") ? "wasm" : functionName.startsWith("(") ? "engine" : "script";
  const key = `${kind.padEnd(6)} ${functionName || "(anonymous)"}`;
  const time = profile.timeDeltas[at] ?? 0;
  self.set(key, (self.get(key) ?? 0) + time);
  total += time;
});
const kinds = new Map();
for (const [key, time] of self) kinds.set(key.slice(0, 6), (kinds.get(key.slice(0, 6)) ?? 0) + time);
const percent = (time) => `${((100 * time) / total).toFixed(1).padStart(5)} %`;
for (const [kind, time] of kinds) console.log(`  ${percent(time)}  all ${kind}`);
for (const [key, time] of [...self].sort((a, b) => b[1] - a[1]).slice(0, SHOWN)) console.log(`  ${percent(time)}  ${key}`);
