// Every function of wrangler.toml in ONE workerd process, queues between them included, without network or watcher.
//
// Started by the local world (tests/sim/edge.rs). One JSON line on standard output says where everything is:
//   {"functions": {"<name>": "http://127.0.0.1:<port>"}, "control": "http://127.0.0.1:<port>", "ready_ms": <n>}
// It ends when its standard input closes or at SIGTERM.
//
// Environment
//   EDGE_CONFIG        wrangler.toml (default: the one in the current folder)
//   EDGE_NODE_MODULES  folder that holds node_modules (default: the current folder)
//   EDGE_VARS          JSON object: variables of every function, over those of the file
//   EDGE_DEV_VARS      "ignore": leave .dev.vars aside, so that tests mean the same on every machine
//   EDGE_WITHHOLD      comma list of queues for which no function gets a producer: sending to them fails
//   EDGE_LIMITS        JSON object: name of a rate limiter -> its limit, over that of the file; null: no function has it
//   EDGE_PORTS         JSON object: function name -> port (default: any free one)
//   EDGE_LOG           file for every line that the functions and the runtime log, as JSON {at, level, text}
//
// Control (POST, JSON body; an answer means done)
//   /scheduled {"worker", "cron"}          fires a cron trigger
//   /enqueue   {"worker", "binding", "body"}  puts a text message into a queue, as the function would
//   /withhold  {"queues": []}              starts the runtime anew with other producers withheld
//   /kill      {}                          kill -9 to the runtime, then waits until it is up again on the same ports.
//                                          Queues live in its memory: what was in them is gone, unlike on the real edge.
//
// It stands on wrangler's `unstable_` and Miniflare's `unsafe` names: their versions are pinned in package.json.
import childProcess from "node:child_process";
import { createWriteStream, existsSync, readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import path from "node:path";
import { finished } from "node:stream/promises";

const env = process.env;
const started = performance.now();
const configPath = path.resolve(env.EDGE_CONFIG ?? "wrangler.toml");
const overrides = JSON.parse(env.EDGE_VARS || "{}");
const ports = JSON.parse(env.EDGE_PORTS || "{}");
const limits = JSON.parse(env.EDGE_LIMITS || "{}");
/** How long Miniflare may take to bring a killed runtime back. */
const RESTART_MS = 30_000;
/** Ports come in blocks of so many, so that those of a checkout with more or fewer functions lie apart or are the same. */
const BLOCK = 16;
let withheld = (env.EDGE_WITHHOLD ?? "").split(",").filter(Boolean);

// Wrangler prints to standard output as it likes; only our one line may go there.
const announce = process.stdout.write.bind(process.stdout);
process.stdout.write = process.stderr.write.bind(process.stderr);

// Miniflare keeps the runtime's process to itself, and /kill needs to know it.
let runtime;
const spawn = childProcess.spawn;
childProcess.spawn = (command, ...rest) => {
  const child = spawn(command, ...rest);
  if (path.basename(String(command)).startsWith("workerd")) runtime = child;
  return child;
};

const require = createRequire(path.resolve(env.EDGE_NODE_MODULES ?? ".") + "/");
const { unstable_getMiniflareWorkerOptions: workerOptionsOf, unstable_readConfig: readConfig } = require("wrangler");
const { Miniflare, Log, LogLevel, convertV4MiniflareOptions } = require("miniflare");

const log = env.EDGE_LOG ? createWriteStream(env.EDGE_LOG, { flags: "a" }) : undefined;
const writeLog = (level, text, at = Date.now()) =>
  log?.write(JSON.stringify({ at: new Date(at).toISOString(), level, text }) + "\n");

const names = readConfig({ config: configPath }).definedEnvironments ?? [];
if (names.length === 0) throw new Error(`${configPath} defines no function: expected [env.<function>] sections`);

let restarted = () => {};
const functions = {};
const control = createServer(async (request, response) => {
  let text = "";
  for await (const chunk of request) text += chunk;
  try {
    const body = await obey(request.url, JSON.parse(text || "{}"));
    response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(body ?? {}));
  } catch (error) {
    response.writeHead(500, { "content-type": "application/json" }).end(JSON.stringify({ error: String(error?.stack ?? error) }));
  }
});
const block = await ownPorts(control, BLOCK * Math.ceil((names.length + 2) / BLOCK));
const mf = new Miniflare(options());
await mf.ready;
for (const name of names) functions[name] = (await mf.unsafeGetDirectURL(name)).href.replace(/\/$/, "");
announce(
  JSON.stringify({
    functions,
    control: `http://127.0.0.1:${control.address().port}`,
    ready_ms: Math.round(performance.now() - started),
  }) + "\n",
);

let stopping = false;
async function stop() {
  if (stopping) return;
  stopping = true;
  control.close();
  await mf.dispose();
  if (log) {
    log.end();
    await finished(log);
  }
  process.exit(0);
}
process.on("SIGTERM", stop);
process.on("SIGINT", stop);
process.stdin.resume();
process.stdin.on("end", stop);
process.stdin.on("error", stop);

async function obey(route, order) {
  switch (route) {
    case "/scheduled": {
      const worker = await mf.getWorker(order.worker);
      return await worker.scheduled({ cron: order.cron, scheduledTime: new Date() });
    }
    case "/enqueue": {
      const producer = await mf.getQueueProducer(order.binding, order.worker);
      await producer.send(order.body, { contentType: "text" });
      return {};
    }
    case "/withhold":
      withheld = order.queues ?? [];
      await mf.setOptions(options());
      return {};
    case "/kill": {
      const back = new Promise((resolve) => (restarted = () => resolve(true)));
      const patience = new Promise((resolve) => setTimeout(resolve, RESTART_MS, false).unref());
      runtime.kill("SIGKILL");
      // Miniflare tries once, and only logs that it did not succeed; asked again it says why.
      if (!(await Promise.race([back, patience]))) await mf.setOptions(options());
      return {};
    }
    default:
      throw new Error(`no such order: ${route}`);
  }
}

/**
 * The first of `count` ports that nobody else takes, `server` listening on it.
 *
 * They stay the same over restarts, and while the runtime is down nothing holds them: of ports that the system gives out, another
 * process may be given one meanwhile. So they lie below those, and whoever listens on the first has the whole block.
 */
async function ownPorts(server, count) {
  const first = 10_000;
  const range = "/proc/sys/net/ipv4/ip_local_port_range";
  const given = existsSync(range) ? parseInt(readFileSync(range, "utf8"), 10) : 0;
  // Where the system gives out nearly all of them, there is nothing better than its usual beginning.
  const end = given > first + 1_000 ? given : 32_768;
  const blocks = Math.floor((end - first) / count);
  for (let tries = 0; tries < 200; tries++) {
    const base = first + count * Math.floor(Math.random() * blocks);
    if (!(await listens(server, base))) continue;
    const others = Array.from({ length: count - 1 }, (_, at) => base + 1 + at);
    const free = await Promise.all(others.map(async (port) => {
      const probe = createServer();
      const free = await listens(probe, port);
      if (free) await new Promise((resolve) => probe.close(resolve));
      return free;
    }));
    if (free.every(Boolean)) return base;
    await new Promise((resolve) => server.close(resolve));
  }
  throw new Error(`no ${count} free ports next to each other from ${first} to ${end}`);
}

function listens(server, port) {
  return new Promise((resolve) => {
    const failed = () => resolve(false);
    server.once("error", failed);
    server.listen(port, "127.0.0.1", () => {
      server.off("error", failed);
      resolve(true);
    });
  });
}

function options() {
  const workers = names.map((name) => worker(name));
  return convertV4MiniflareOptions({
    host: "127.0.0.1",
    port: block + names.length + 1,
    cf: false,
    log: new Log(LogLevel.WARN),
    unsafeTriggerHandlers: true,
    handleStructuredLogs: ({ timestamp, level, message }) => writeLog(level, message, timestamp),
    unsafeHandleRuntimeRestart: () => restarted(),
    workers,
  });
}

function worker(name) {
  const config = readConfig({ config: configPath, env: name });
  const { workerOptions } = workerOptionsOf(configPath, name);
  if (!config.main || !existsSync(config.main)) {
    throw new Error(`${name}: ${config.main} is not built: run \`cargo xtask build\` first`);
  }
  const folder = path.dirname(config.main);
  const wasm = readdirSync(folder).filter((file) => file.endsWith(".wasm"));
  const fromFile = env.EDGE_DEV_VARS === "ignore" ? pick(workerOptions.bindings, Object.keys(config.vars ?? {})) : workerOptions.bindings;
  const queueProducers = Object.fromEntries(
    Object.entries(workerOptions.queueProducers ?? {}).filter(([, producer]) => !withheld.includes(producer.queueName ?? producer)),
  );
  // Only the platform writes to a dead-letter queue; here `/enqueue` may, in its place.
  for (const queue of config.queues?.consumers?.map((consumer) => consumer.queue) ?? []) {
    if (queue.endsWith("-dlq")) queueProducers[queue.replaceAll("-", "_").toUpperCase()] = { queueName: queue };
  }
  const ratelimits = Object.fromEntries(
    Object.entries(workerOptions.ratelimits ?? {})
      .filter(([limiter]) => limits[limiter] !== null)
      .map(([limiter, { simple, ...rest }]) => [limiter, { ...rest, simple: { ...simple, limit: limits[limiter] ?? simple.limit } }]),
  );
  return {
    ...workerOptions,
    name,
    ratelimits,
    compatibilityDate: config.compatibility_date,
    bindings: { ...fromFile, ...overrides },
    queueProducers,
    modules: [
      { type: "ESModule", path: config.main },
      ...wasm.map((file) => ({ type: "CompiledWasm", path: path.join(folder, file) })),
    ],
    modulesRoot: folder,
    unsafeDirectSockets: [{ host: "127.0.0.1", port: port(name) }],
  };
}

function port(name) {
  return ports[name] ?? block + 1 + names.indexOf(name);
}

function pick(object, keys) {
  return Object.fromEntries(Object.entries(object ?? {}).filter(([key]) => keys.includes(key)));
}
