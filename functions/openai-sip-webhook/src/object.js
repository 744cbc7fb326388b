// What the object of a call needs of the runtime: its storage, its socket, and the way to it. Nothing is decided here.
//
// Parts of a text are separated by a line feed, as in `shell.js` of shared/edge; what may contain one comes last.

const PART = "\n";

/** Asks the object of this name; gives `status, text`, or an empty text when it could not be asked. */
export async function ask(env, binding, name, text) {
  try {
    const objects = env[binding];
    const answer = await objects.get(objects.idFromName(name)).fetch("https://object/", { method: "POST", body: text });
    return answer.status + PART + (await answer.text());
  } catch {
    return "";
  }
}

/** What the object answers. */
export function answered(status, text) {
  return new Response(text, { status, headers: { "content-type": "application/json" } });
}

/** The object's own database: notes by name, and the events of the call that are not in Postgres yet. */
export class Store {
  constructor(state) {
    this.storage = state.storage;
    this.sql = state.storage.sql;
    this.make();
  }

  make() {
    this.sql.exec("create table if not exists notes (name text primary key, value text not null)");
    this.sql.exec("create table if not exists events (seq integer primary key, event text not null)");
  }

  /** Empty where there is none. */
  note(name) {
    const [row] = this.sql.exec("select value from notes where name = ?", name).toArray();
    return row === undefined ? "" : row.value;
  }

  put(name, value) {
    this.sql.exec("insert into notes (name, value) values (?, ?) on conflict (name) do update set value = excluded.value", name, value);
  }

  keep(seq, event) {
    this.sql.exec("insert into events (seq, event) values (?, ?) on conflict (seq) do nothing", seq, event);
  }

  /** The oldest events, at most so many, one a line. */
  events(most) {
    const rows = this.sql.exec("select event from events order by seq limit ?", most).toArray();
    return rows.map((row) => row.event).join(PART);
  }

  /** Events up to this number are in Postgres. */
  stored(seq) {
    this.sql.exec("delete from events where seq <= ?", seq);
  }

  /** Everything but these notes is forgotten. */
  forget(kept) {
    const names = kept.split(PART);
    this.sql.exec("delete from events");
    this.sql.exec(`delete from notes where name not in (${names.map(() => "?").join(", ")})`, ...names);
  }

  async clear() {
    await this.storage.deleteAll();
    this.make();
  }

  /** Lets the object be woken at this time, in place of any other. */
  wake(ms) {
    return this.storage.setAlarm(ms);
  }
}

/** One connection. `tell(kind, text)` hears of `message` with its text, then of `closed` with the code, once. */
export class Socket {
  constructor(tell) {
    this.tell = tell;
    this.socket = null;
  }

  /** Gives `101, , ` or `status, , body` of a refusal, or `connect, name, message` where there is no answer. */
  async open(url, authorization, timeoutMs) {
    let timer;
    const late = new Promise((resolve) => (timer = setTimeout(() => resolve(null), timeoutMs)));
    const asked = fetch(url, { headers: { authorization, upgrade: "websocket" }, redirect: "manual" });
    try {
      const response = await Promise.race([asked, late]);
      if (response === null) {
        // Whatever comes now comes too late.
        asked.then(({ webSocket }) => (webSocket?.accept(), webSocket?.close(1000)), () => {});
        return "connect" + PART + "TimeoutError" + PART;
      }
      const socket = response.webSocket;
      if (!socket) return response.status + PART + PART + (await response.text());
      const closed = (code) => {
        if (this.socket === null) return;
        this.socket = null;
        try {
          socket.close(1000);
        } catch {}
        this.tell("closed", String(code));
      };
      socket.addEventListener("message", ({ data }) => {
        if (this.socket !== null && typeof data === "string") this.tell("message", data);
      });
      socket.addEventListener("close", ({ code }) => closed(code));
      socket.addEventListener("error", () => closed(0));
      this.socket = socket;
      socket.accept();
      return "101" + PART + PART;
    } catch (error) {
      return "connect" + PART + (error?.name ?? "") + PART + (error?.message ?? "");
    } finally {
      clearTimeout(timer);
    }
  }

  /** Whether it went onto the wire. */
  send(text) {
    try {
      this.socket.send(text);
      return true;
    } catch {
      return false;
    }
  }

  /** Ends it, and tells nothing any more. */
  close() {
    const socket = this.socket;
    this.socket = null;
    try {
      socket?.close(1000);
    } catch {}
  }
}
