// The least that a Worker can do between a request and its answer: read the body, send to the queue, answer. What the
// runtime itself costs is known from it.
import type { Env } from "./http";

export default {
  async fetch(request: Request, env: Env): Promise<Response> {
    await request.arrayBuffer();
    await env.POST_CALL_NOTIFY.send("x", { contentType: "text" });
    return new Response("{}", { status: 202, headers: { "content-type": "application/json" } });
  },
};
