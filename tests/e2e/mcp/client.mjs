// The official MCP client, made to do a few steps: reads {url, token, mode, steps} from standard input, and writes what came of
// them as one line of JSON.
//
//   mode   "legacy" (begins with initialize), "auto" (asks first) or {"pin": "2026-07-28"}
//   steps  {"list": true} or {"call": "<tool>", "arguments": {}, "meta": {}}
//   out    {version, era, server, instructions, steps: [{tools} | {text, isError} | {error}]} or {error} when there was no connection
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

let input = "";
for await (const piece of process.stdin) input += piece;
const { url, token, mode, steps } = JSON.parse(input);

const failure = (error) => ({ name: error?.name, code: error?.code, status: error?.status ?? error?.data?.status, message: String(error?.message) });

async function step(client, { call, arguments: given, meta }) {
  if (call === undefined) return { tools: (await client.listTools()).tools };
  const result = await client.callTool({ name: call, arguments: given ?? {}, ...(meta && { _meta: meta }) });
  return { text: result.content.map((part) => part.text).join(""), isError: result.isError };
}

async function play() {
  const client = new Client({ name: "ihuza-tests", version: "1" }, { versionNegotiation: { mode } });
  const requestInit = { headers: token ? { Authorization: `Bearer ${token}` } : {} };
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
  const done = [];
  for (const wanted of steps) done.push(await step(client, wanted).catch((error) => ({ error: failure(error) })));
  const said = {
    version: client.getNegotiatedProtocolVersion(),
    era: client.getProtocolEra(),
    server: client.getServerVersion()?.name,
    instructions: client.getInstructions(),
    steps: done,
  };
  await client.close();
  return said;
}

const said = await play().catch((error) => ({ error: failure(error) }));
process.stdout.write(JSON.stringify(said) + "\n");
