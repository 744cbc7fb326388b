// The queue's stand-in: takes every message and does nothing with it. A GET shows the messages since the last GET.

let sent: string[] = [];

export default {
  async fetch(request: Request): Promise<Response> {
    if (request.method === "GET") {
      const shown = sent;
      sent = [];
      return Response.json(shown);
    }
    sent.push(await request.text());
    if (sent.length > 64) sent.shift();
    return Response.json({ metadata: { metrics: { backlogCount: 0, backlogBytes: 0 } } });
  },
};
