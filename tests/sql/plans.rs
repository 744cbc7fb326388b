//! What the functions and the operators ask of a full database is found by an index: the shape of every plan, nested ones
//! included, not the time it takes. The server itself writes down the plans (auto_explain) while the real RPCs run.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::{AsyncMessage, Client, NoTls};

use crate::support::{Db, attempt, beside, refusal, rpc, text, token, try_rpc, with};

/// Tables with fewer rows may be read as a whole.
const MANY: i64 = 10_000;

/// So many rows may a step of a plan read and throw away.
const WASTE: f64 = 2_000.0;

/// 100,000 sessions, messages and deliveries and what belongs to them, over the last seventy days.
const FILL: &str = "
create function pg_temp.id(kind text, n bigint) returns uuid language sql immutable as
  $$ select (lpad(encode(kind::bytea, 'hex'), 8, '0') || '-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid $$;
create function pg_temp.client(n bigint) returns uuid language sql stable as
  $$ select case when {clients} = 1 then private.default_client_id() else pg_temp.id('cl', n % {clients}) end $$;
insert into public.clients (id, slug, brand) select pg_temp.id('cl', n), 'client-' || n, 'B' from generate_series(0, {clients} - 1) n where {clients} > 1;
set session_replication_role = replica;
set synchronous_commit = off;
insert into public.profiles (id, phone_number, user_id, has_whatsapp, has_whatsapp_source, has_whatsapp_at)
select pg_temp.id('p', n), '+2507' || lpad(n::text, 8, '0'), case when n % 50 = 0 then pg_temp.id('u', n) end, n % 3 = 0, 'inbound', now()
  from generate_series(1, 30000) n;
insert into public.profile_identities (profile_id, kind, value)
select pg_temp.id('p', n), 'phone', '+2507' || lpad(n::text, 8, '0') from generate_series(1, 30000) n;
insert into public.voice_calls (id, client_id, profile_id, origin, provider_call_id, mtn_call_sid, from_number, to_number, status, started_at, answered_at, ended_at, notified_at, created_at)
select pg_temp.id('c', n), pg_temp.client(n), pg_temp.id('p', n), 'mtn_sip', 'call-' || n, 'sid-' || n, '+2507' || lpad(n::text, 8, '0'), '+250788000000', 'completed', t, t, t + interval '3 minutes',
       case when n % 2000 <> 0 then t + interval '3 minutes' end, t
  from (select n, now() - n * interval '2 minutes' - interval '5 minutes' as t from generate_series(1, 30000) n) x;
insert into public.call_summaries (id, client_id, call_id, headline) select pg_temp.id('cs', n), pg_temp.client(n), pg_temp.id('c', n), 'A call' from generate_series(1, 30000) n;
insert into public.transcripts (client_id, call_id, seq, role, text) select pg_temp.client(n), pg_temp.id('c', n / 2), n % 2, 'user', 'Hello' from generate_series(2, 30001) n;
insert into public.omnichannel_sessions (id, client_id, profile_id, primary_channel, status, call_id, last_activity_at, created_at, updated_at)
select pg_temp.id('s', n), pg_temp.client(n), pg_temp.id('p', 1 + n % 30000), 'voice', case when n <= 2000 then 'follow_up' else 'expired' end, pg_temp.id('c', 1 + n % 30000), t, t, t
  from (select n, now() - n * interval '1 minute' as t from generate_series(1, 100000) n) x;
insert into public.agent_tool_tokens (id, client_id, session_id, token_hash, scopes, purpose, expires_at)
select pg_temp.id('at', n), pg_temp.client(n), pg_temp.id('s', n), encode(sha256(n::text::bytea), 'hex'), '{session:read}', 'plans', now() - n * interval '3 minutes' from generate_series(1, 30000) n;
insert into public.conversation_threads (id, client_id, session_id, profile_id)
select pg_temp.id('t', n), pg_temp.client(n), pg_temp.id('s', n), pg_temp.id('p', 1 + n % 30000) from generate_series(1, 30000) n;
insert into public.conversation_turns (id, client_id, session_id, profile_id, kind, status, lease_token, lease_until, correlation_id, next_attempt_at, sms_delivery_id, finished_at, created_at)
select pg_temp.id('tu', n), pg_temp.client(n), pg_temp.id('s', n), pg_temp.id('p', 1 + n % 30000), 'conversation',
       case when n <= 20 then 'open' when n <= 40 then 'released' when n % 5000 = 0 then 'unknown' else 'answered' end, pg_temp.id('lt', n), t, 'turn-' || n,
       case when n between 21 and 40 then t end, pg_temp.id('tsms', n), t, t
  from (select n, now() - n * interval '2 minutes' - interval '10 minutes' as t from generate_series(1, 30000) n) x;
insert into public.conversation_messages (id, client_id, thread_id, session_id, profile_id, turn_id, direction, role, channel, content, provider, provider_message_id, handled_at, occurred_at, created_at)
select pg_temp.id('m', n), pg_temp.client(n), pg_temp.id('t', n), pg_temp.id('s', n), pg_temp.id('p', 1 + n % 30000),
       case when n <= 30000 and n % 2 = 0 then pg_temp.id('tu', n) end,
       case n % 2 when 0 then 'inbound' else 'outbound' end, case n % 2 when 0 then 'user' else 'assistant' end, 'sms', 'Hello',
       case n % 2 when 0 then 'mtn' end, case n % 2 when 0 then 'in-' || n end, case when n > 60 then t end, t, t
  from (select n, now() - n * interval '1 minute' as t from generate_series(1, 100000) n) x;
insert into public.message_delivery_log (id, client_id, session_id, profile_id, call_id, message_id, channel, provider, provider_message_id, correlation_id, purpose, status, recipient, content, payload,
  attempts, last_outcome, next_attempt_at, deadline_at, idempotency_key, created_at)
select pg_temp.id('d', n), pg_temp.client(n), pg_temp.id('s', n), pg_temp.id('p', 1 + n % 30000), pg_temp.id('c', 1 + n % 30000), pg_temp.id('m', n),
       case n % 2 when 0 then 'sms' else 'whatsapp' end, case n % 2 when 0 then 'mtn' else 'whatsapp' end, 'out-' || n, 'corr-' || n, 'call_summary',
       case when n <= 200 then 'sending' when n % 7 = 0 then 'failed' else 'delivered' end, '+2507' || lpad((1 + n % 30000)::text, 8, '0'), 'text', '{\"text\": \"text\"}', 1,
       case when n <= 200 then 'retryable' else 'accepted' end, case when n <= 200 then now() - n * interval '1 second' end,
       case when n <= 10 then now() - interval '1 minute' when n <= 200 then now() + interval '1 hour' else t + interval '1 day' end, 'key-' || n, t
  from (select n, now() - n * interval '1 minute' as t from generate_series(1, 100000) n) x;
insert into public.message_delivery_attempts (delivery_id, attempt, provider, outcome, created_at)
select pg_temp.id('d', n), 1, case n % 2 when 0 then 'mtn' else 'whatsapp' end, 'accepted', now() - n * interval '1 minute' from generate_series(1, 30000) n;
insert into public.message_status_events (delivery_id, delivery_ref, source, provider, provider_message_id, status, occurred_at, dedupe_key, created_at)
select case when n > 300 then pg_temp.id('d', n) end, case when n <= 300 then pg_temp.id('lost', n)::text end, 'provider', 'mtn', 'out-' || n, 'delivered', t, 'event-' || n, t
  from (select n, now() - n * interval '1 minute' as t from generate_series(1, 100000) n) x;
insert into public.call_notifications (id, client_id, call_id, profile_id, session_id, status, lease_token, lease_until, correlation_id, sms_delivery_id, next_attempt_at, created_at)
select pg_temp.id('n', n), pg_temp.client(n), pg_temp.id('c', n), pg_temp.id('p', n), pg_temp.id('s', n),
       case when n <= 20 then 'open' when n <= 40 then 'released' when n % 5000 = 0 then 'unknown' else 'done' end, pg_temp.id('nt', n), t, 'note-' || n, pg_temp.id('nsms', n),
       case when n between 21 and 40 then t end, t
  from (select n, now() - n * interval '2 minutes' - interval '10 minutes' as t from generate_series(1, 30000) n where n % 2000 <> 0) x;
insert into public.notification_requests (correlation_id, client_id, call_id, notification_id, status)
select 'note-' || n, pg_temp.client(n), pg_temp.id('c', n), pg_temp.id('n', n), 'working' from generate_series(1, 30000) n;
insert into public.mcp_tool_calls (client_id, session_id, name, idempotency_key)
select pg_temp.client(n), pg_temp.id('s', n), 'session_get_context', 'tool-' || n from generate_series(1, 12000) n;
insert into public.voice_events (client_id, call_id, seq, type, occurred_at) select pg_temp.client(n), pg_temp.id('c', n / 10), 1 + n % 10, 'transcript', now() from generate_series(10, 100000) n;
insert into public.openai_sessions (client_id, call_id, model) select pg_temp.client(n), pg_temp.id('c', n), 'gpt-realtime-2.1' from generate_series(1, 30000) n;
insert into public.voice_memories (client_id, profile_id, key, value) select pg_temp.client(n), pg_temp.id('p', n), 'area', 'Kicukiro' from generate_series(1, 30000) n;
insert into public.call_consents (client_id, call_id, profile_id, kind, state, method, occurred_at) select pg_temp.client(n), pg_temp.id('c', n), pg_temp.id('p', n), 'recording', 'given', 'dtmf', now() from generate_series(1, 30000) n;
insert into public.services (client_id, name, category, area, place_id)
select pg_temp.client(n), 'Service ' || md5(n::text), case when n % 40 = 0 then 'housing' else 'trade ' || md5((n % 40)::text) end, 'Kigali', 1 + n % 69 from generate_series(1, 30000) n;
insert into public.service_words (client_id, word) select distinct s.client_id, w from public.services s, lateral regexp_split_to_table(s.spelling, '[^[:alpha:]]+') w where length(w) between 3 and 40;
insert into public.service_requests (client_id, profile_id, session_id, kind, state, closed_at, created_at)
select pg_temp.client(n), pg_temp.id('p', n), pg_temp.id('s', n), 'housing', case when n % 3 = 0 then 'open' else 'closed' end, case when n % 3 <> 0 then now() end, now() - n * interval '1 minute' from generate_series(1, 30000) n;
insert into public.transport_bookings (client_id, profile_id, session_id, pickup, destination, state, created_at)
select pg_temp.client(n), pg_temp.id('p', n), pg_temp.id('s', n), 'Remera', 'Gisozi', case when n % 3 = 0 then 'requested' else 'done' end, now() - n * interval '1 minute' from generate_series(1, 30000) n;
insert into public.request_changes (client_id, profile_id, service_request_id, changed_by, changes)
select r.client_id, r.profile_id, r.id, 'person', '{}' from public.service_requests r;
insert into public.handoffs (client_id, profile_id, session_id, reason, state, closed_at, created_at)
select pg_temp.client(n), pg_temp.id('p', n), pg_temp.id('s', n), 'asked for', case when n % 300 = 0 then 'waiting' else 'closed' end, case when n % 300 <> 0 then now() end, now() - n * interval '1 minute' from generate_series(1, 30000) n;
insert into public.jobs (queue, payload, status, completed_at, created_at)
select 'sms-inbound', to_jsonb(n), case when n <= 20 then 'pending' else 'done' end, case when n > 20 then t end, t
  from (select n, now() - n * interval '15 seconds' as t from generate_series(1, 12000) n) x;
insert into public.rate_limits (bucket, window_start, taken) select 'sms_inbound:' || n, now() - (n % 40) * interval '1 hour', 1 from generate_series(1, 12000) n;
insert into public.provider_outcomes (provider, outcome, created_at) select 'openai', 'accepted', now() - n * interval '0.1 seconds' from generate_series(1, 12000) n;
insert into public.alerts (kind, severity, dedupe_key, message, resolved_at) select 'a', 'warning', 'a-' || n, 'Look.', case when n > 10 then now() end from generate_series(1, 12000) n;
insert into public.dead_letters (queue, message_id) select 'sms-inbound', 'letter-' || n from generate_series(1, 12000) n;
reset session_replication_role;
";

/// A connection that hears the plans of everything it runs.
pub struct Listener {
    pub client: Client,
    plans: UnboundedReceiver<String>,
}

impl Listener {
    pub async fn connect(url: &str) -> Self {
        let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        let (told, plans) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notice(notice) = message {
                    let _ = told.send(notice.message().to_owned());
                }
            }
        });
        let settings = "load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;
                        set auto_explain.log_analyze = on; set auto_explain.log_timing = off; set auto_explain.log_format = json;
                        set role service_role; set client_min_messages = log";
        if let Err(error) = client.batch_execute(settings).await {
            panic!(
                "this server cannot tell its plans: {}\ninstall the contrib modules of PostgreSQL, or point POSTGRES_BIN at a server that has them",
                refusal(&error).message
            );
        }
        Self { client, plans }
    }

    /// The plans since the last look.
    pub fn heard(&mut self) -> Vec<Value> {
        let mut heard = Vec::new();
        while let Ok(message) = self.plans.try_recv() {
            if let Some((_, plan)) = message.split_once("plan:\n") {
                heard.push(serde_json::from_str(plan).unwrap());
            }
        }
        heard
    }
}

/// What is wrong with a plan: a big table read as a whole, or many rows read in vain.
pub fn judge(plan: &Value, big: &BTreeSet<String>, wrong: &mut Vec<String>) {
    let number = |field: &str| plan[field].as_f64().unwrap_or_default();
    let kind = text(plan, "/Node Type");
    let relation = text(plan, "/Relation Name");
    if kind.contains("Seq Scan") && big.contains(&relation) {
        wrong.push(format!("reads all of {relation}"));
    }
    let waste = (number("Rows Removed by Filter") + number("Rows Removed by Index Recheck")) * number("Actual Loops");
    if waste > WASTE {
        wrong.push(format!("{kind} of {relation} {} reads {waste} rows in vain", text(plan, "/Index Name")));
    }
    for inner in plan["Plans"].as_array().into_iter().flatten() {
        judge(inner, big, wrong);
    }
}

/// Runs `FILL`, for so many clients; indexes are built afterwards, which takes a fraction of the time.
async fn fill(db: &Db, clients: u32) {
    let sql = "select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index
                where indrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace)
                  and not exists (select from pg_constraint where conindid = indexrelid)";
    let indexes = db.admin.query(sql, &[]).await.unwrap();
    let (drop, create): (Vec<String>, Vec<String>) =
        indexes.iter().map(|row| (format!("drop index {}", row.get::<_, String>(0)), row.get(1))).unzip();
    db.run(&drop.join(";")).await;
    db.run(&FILL.replace("{clients}", &clients.to_string())).await;
    db.run(&create.join(";")).await;
    db.run("analyze").await;
}

async fn big_tables(db: &Db) -> BTreeSet<String> {
    let sql = "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' and reltuples >= $1::bigint";
    db.admin.query(sql, &[&MANY]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// One call: what it is, its function (or `sql`), its argument, and what its answer says when it found what was meant.
struct Call(&'static str, &'static str, Value, &'static str);

#[tokio::test]
async fn no_query_of_an_rpc_or_of_an_operator_reads_a_big_table() {
    let db = Db::new().await;
    fill(&db, 1).await;
    let big = big_tables(&db).await;
    assert!(big.len() >= 18, "{big:?}");

    let mut listener = Listener::connect(db.url()).await;
    let mut found = BTreeSet::new();
    let mut count = 0;
    // With the values at hand, and as PL/pgSQL keeps plans after a few calls.
    for (round, mode) in ["force_custom_plan", "force_generic_plan"].into_iter().enumerate() {
        listener.client.batch_execute(&format!("set plan_cache_mode = {mode}")).await.unwrap();
        listener.heard();
        let mut look = |what: &str, plans: Vec<Value>| {
            assert!(!plans.is_empty(), "{what} has no plan");
            count += plans.len();
            for plan in plans {
                let mut wrong = Vec::new();
                judge(&plan["Plan"], &big, &mut wrong);
                for wrong in wrong {
                    found.insert(format!("{mode}: {what} {wrong}\n{}", text(&plan, "/Query Text")));
                }
            }
        };
        for Call(what, name, p, says) in calls(round) {
            let answer = if name == "sql" {
                let run = listener.client.batch_execute(p.as_str().unwrap()).await;
                run.map_err(|error| refusal(&error)).map(|()| Value::Null)
            } else {
                try_rpc(&listener.client, name, p).await
            };
            let answer = answer.unwrap_or_else(|refusal| panic!("{what}: {}", refusal.message)).to_string();
            assert!(answer.contains(says), "{what} was to say {says}: {answer}");
            look(what, listener.heard());
        }
        pairs(&listener, round).await;
        look("a claim and its result", listener.heard());
    }
    assert!(count > 500, "only {count} plans were heard");
    let found: Vec<String> = found.into_iter().collect();
    assert!(found.is_empty(), "{}", found.join("\n\n"));
}

#[tokio::test]
async fn no_query_of_somebody_signed_in_reads_a_big_table() {
    let db = Db::new().await;
    fill(&db, 100).await;
    let (person, member, stranger) = (id("u", 5000), id("me", 1), id("me", 2));
    let join = "insert into public.client_members (client_id, user_id) values";
    db.run(&format!("{join} ('{}', '{member}')", id("cl", 7))).await;
    let big = big_tables(&db).await;
    let mut listener = Listener::connect(db.url()).await;
    listener.client.batch_execute("reset role; set role authenticated").await.unwrap();
    // Who looks, and how many sessions are theirs.
    for (user, sessions) in [(&person, 4), (&member, 1000), (&stranger, 0)] {
        let claims = json!({"sub": user, "role": "authenticated"});
        listener.client.batch_execute(&format!("set request.jwt.claims = '{claims}'")).await.unwrap();
        let sql = "select count(*) from public.omnichannel_sessions";
        assert_eq!(listener.client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), sessions, "{user}");
        for sql in theirs(user) {
            listener.heard();
            listener.client.batch_execute(&sql).await.unwrap();
            let mut wrong = Vec::new();
            let plans = listener.heard();
            assert!(!plans.is_empty(), "{sql} has no plan");
            for plan in plans {
                judge(&plan["Plan"], &big, &mut wrong);
            }
            assert!(wrong.is_empty(), "{user}: {sql} {}", wrong.join("; "));
        }
    }
}

/// What a page of somebody signed in asks for.
fn theirs(user: &str) -> Vec<String> {
    let mut queries = vec![
        format!("select * from public.profiles where user_id = '{user}'"),
        format!("select * from public.profiles where id = '{}'", id("p", 4711)),
        format!("select * from public.message_status_events where delivery_id = '{}'", id("d", 4711)),
        format!("select * from public.message_delivery_attempts where delivery_id = '{}'", id("d", 4711)),
        format!("select * from public.conversation_messages where session_id = '{}' order by seq", id("s", 4711)),
        format!("select * from public.transcripts where call_id = '{}' order by seq", id("c", 4711)),
    ];
    let tables = [
        "omnichannel_sessions",
        "conversation_threads",
        "conversation_messages",
        "message_delivery_log",
        "voice_calls",
        "transcripts",
        "call_summaries",
        "mcp_tool_calls",
        "voice_events",
        "openai_sessions",
        "voice_memories",
        "call_consents",
        "services",
        "service_requests",
        "transport_bookings",
        "request_changes",
        "handoffs",
        "profile_identities",
        "alerts",
    ];
    for table in tables {
        queries.push(format!("select count(*) from public.{table}"));
        queries.push(format!("select * from public.{table} order by created_at desc limit 20"));
    }
    queries
}

fn calls(round: usize) -> Vec<Call> {
    let lease = |n: usize, p: Value| {
        with(json!({"correlation_id": format!("plan-{round}-{n}"), "lease_token": token((n + 100 * round) as u32)}), p)
    };
    let event = |more: Value| {
        let event = with(
            json!({"provider": "mtn", "status": "read", "occurred_at": format!("2030-01-01T00:00:0{round}Z")}),
            more,
        );
        json!({"correlation_id": "plan", "events": [event]})
    };
    let message = |id: String, from: String| json!({"provider": "mtn", "provider_message_id": id, "from": from, "to": "8080", "text": "x"});
    let stop = with(message(format!("stop-{round}"), format!("+25070000500{round}")), json!({"keyword": "stop"}));
    let n = 4000 + round * 2;
    let (call, turn, report) = ("begin_call_notification", "begin_sms_turn", "record_delivery_events");
    let statements = std::fs::read_to_string(beside("seed_statements.sql")).unwrap();
    // What the documents leave to the reader: the id of a deployment.
    let statements = statements.replace("'xxx'", &format!("'{}'", id("ad", 7)));
    let sql = |text: String| json!(text);
    vec![
        Call("call by id, not told yet", call, lease(1, json!({"call_ref": id("c", 2000 * (round + 1))})), "\"go\""),
        Call("call by the trunk's id, told", call, lease(2, json!({"call_ref": "call-777"})), "\"done\""),
        Call("call by MTN's id", call, lease(3, json!({"call_ref": "sid-778"})), "\"done\""),
        Call("call by its summary", call, lease(4, json!({"call_ref": id("cs", 779)})), "\"done\""),
        Call("no such call", call, lease(5, json!({"call_ref": "nobody-knows"})), "call_not_found"),
        Call("a call whose holder is gone", call, lease(6, json!({"call_ref": id("c", 15 + round)})), "\"attempt\":2"),
        Call(
            "message of somebody known",
            turn,
            lease(7, message(format!("new-{round}"), format!("+25070000471{round}"))),
            "\"go\"",
        ),
        Call(
            "message of somebody new",
            turn,
            lease(8, message(format!("newer-{round}"), format!("+25078811111{round}"))),
            "\"go\"",
        ),
        Call(
            "message delivered again",
            turn,
            lease(9, message("in-8000".to_owned(), "+250700008001".to_owned())),
            "duplicate",
        ),
        Call("session looked after", turn, lease(10, json!({"session_id": id("s", 30 + 2 * round)})), "\"go\""),
        Call("session with nothing to do", turn, lease(10, json!({"session_id": id("s", 70_000 + round)})), "nothing"),
        Call("stop", turn, lease(11, stop), "keyword"),
        Call("report by our id", report, event(json!({"delivery_ref": id("d", n)})), "\"applied\":1"),
        Call(
            "report by the provider's id",
            report,
            event(json!({"provider_message_id": format!("OUT-{}", n + 4)})),
            "\"applied\":1",
        ),
        Call(
            "report of an unknown message",
            report,
            event(json!({"provider_message_id": format!("0123456{round}")})),
            "\"orphaned\":1",
        ),
        Call("report by an unknown id", report, event(json!({"delivery_ref": id("no", round)})), "\"orphaned\":1"),
        Call(
            "failure reported",
            report,
            event(json!({"status": "failed", "delivery_ref": id("d", n + 10)})),
            "\"applied\":1",
        ),
        Call(
            "report about work given up",
            report,
            event(json!({"delivery_ref": id("nsms", 5000 + 5000 * round)})),
            "\"orphaned\":1",
        ),
        Call(
            "report about a turn given up",
            report,
            event(json!({"delivery_ref": id("tsms", 5000 + 5000 * round)})),
            "\"orphaned\":1",
        ),
        Call(
            "one due delivery",
            "claim_due_deliveries",
            lease(12, json!({"delivery_id": id("d", 100 + 2 * round)})),
            "call_summary",
        ),
        Call("due deliveries", "claim_due_deliveries", lease(13, json!({"limit": 20})), "call_summary"),
        Call("sweep", "sweep", json!({"limit": 50}), "jobs"),
        Call("status of a request", "notification_status", json!({"correlation_id": "note-4711"}), "\"delivered\""),
        Call("job", "enqueue_job", json!({"queue": "sms-inbound", "payload": {"n": round}}), "id"),
        Call("jobs done", "complete_jobs", json!({"ids": [id("no", 1)]}), "0"),
        Call(
            "dead letter",
            "record_dead_letter",
            lease(0, json!({"queue": "sms-inbound", "message_id": format!("late-{round}"), "attempts": 3})),
            "id",
        ),
        Call(
            "rate limit",
            "take_rate_limit",
            json!({"bucket": "sms_inbound:17", "limit": 5, "window_seconds": 3600}),
            "true",
        ),
        Call("a call opens", "open_voice_call", voice(round, 1, json!({"model": "gpt-realtime-2.1"})), "\"go\""),
        Call(
            "events of a call",
            "record_voice_events",
            voice(
                round,
                1,
                json!({"events": [{"seq": 2, "type": "transcript", "role": "user", "text": "x", "language": "en"}, {"seq": 3, "type": "session.created"},
                {"seq": 4, "type": "consent", "state": "given", "method": "dtmf"}, {"seq": 5, "type": "response.done", "usage": {}}]}),
            ),
            "[[1,1]]",
        ),
        Call(
            "search of an agent",
            "run_voice_tool",
            voice(
                round,
                1,
                json!({"name": "search_services", "idempotency_key": "k", "arguments": {"query": format!("{:x}", 4711 + round)}}),
            ),
            "services",
        ),
        Call("a call ends", "end_voice_call", voice(round, 1, json!({"cause": "caller_hangup"})), "\"ended\""),
        Call(
            "a call of which nobody told ends",
            "end_voice_call",
            voice(round, 2, json!({"cause": "silence"})),
            "\"created\":true",
        ),
        Call("a call of before ends again", "end_voice_call", json!({"call_id": id("c", 4711)}), "already_ended"),
        Call("how the functions are", "health_check", json!({"function": "openai-realtime-sip"}), "mtn_sip"),
        Call(
            "tool",
            "run_agent_tool",
            json!({"session_id": id("s", 4711), "name": "session_get_context", "idempotency_key": format!("t-{round}")}),
            "true",
        ),
        used(round, "search_services", json!({"query": "housing", "area": "Kigali"})),
        used(round, "search_services", json!({"query": "housng", "area": "Kimironko"})),
        used(round, "search_services", json!({"query": "zzxqy wvkkp qqjzz"})),
        used(round, "search_services", json!({"query": "hxusing zzxqy wvkkp ".repeat(9), "category": "nothing"})),
        used(round, "service_request_save", json!({"kind": "housing", "budget": 1})),
        used(round, "book_transport", json!({"action": "create", "pickup": "Remera", "destination": "town"})),
        used(round, "book_transport", json!({"action": "cancel"})),
        used(round, "transfer_to_human", json!({"reason": "asked for"})),
        used(round, "profile_update_preferences", json!({"language": "fr"})),
        used(round, "remember", json!({"key": "area", "value": "Remera"})),
        used(round, "messaging_send_dual", json!({"text": "x"})),
        Call(
            "a hand-over is taken",
            "sql",
            sql(format!(
                "select public.take_handoff(jsonb_build_object('operator', 'a', 'client_id', (select client_id from public.omnichannel_sessions where id = '{}')))",
                id("s", 4711)
            )),
            "",
        ),
        Call(
            "a token for a conversation",
            "issue_agent_tool_token",
            json!({"session_id": id("s", 4711), "scopes": ["session:read"], "purpose": "plans"}),
            "mcpt_",
        ),
        Call("tool of an MCP client", "run_mcp_tool", json!({"token_hash": "0".repeat(64)}), "refused"),
        Call("one token ends", "revoke_agent_tool_tokens", json!({"token_id": id("at", 4712)}), "revoked"),
        Call(
            "tokens of a conversation end",
            "revoke_agent_tool_tokens",
            json!({"session_id": id("s", 4711)}),
            "revoked",
        ),
        Call(
            "session of a person",
            "sql",
            sql(format!("select public.get_or_create_session('{}')", id("p", 4711))),
            "",
        ),
        Call("context", "sql", sql(format!("select public.get_session_context('{}')", id("s", 4711))), ""),
        Call(
            "status of a session",
            "sql",
            sql(format!("select public.update_status('{}', 'follow_up')", id("s", 4711))),
            "",
        ),
        Call(
            "summary sent once more",
            "sql",
            sql(format!("select public.resend_call_notification('{}', 'asked for')", id("c", 780 + round))),
            "",
        ),
        Call(
            "availability",
            "sql",
            sql("select public.check_whatsapp_available(p_phone_number => '+250700004711')".to_owned()),
            "",
        ),
        Call(
            "delivery logged",
            "sql",
            sql(format!(
                "select public.log_delivery('sms', p_provider => 'mtn', p_provider_message_id => 'x-{round}')"
            )),
            "",
        ),
        Call(
            "delivery logged again",
            "sql",
            sql("select public.log_delivery('sms', p_provider => 'mtn', p_provider_message_id => 'out-5000')"
                .to_owned()),
            "",
        ),
        Call(
            "delivery of a key logged again",
            "sql",
            sql("select public.log_delivery('sms', p_idempotency_key => 'key-5002')".to_owned()),
            "",
        ),
        Call("the statements of the documents", "sql", sql(statements), ""),
        Call(
            "nobody tells of a message",
            "sql",
            sql(format!(
                "update public.message_delivery_log set status = 'sent' where id = '{}'",
                id("d", 1440 * (17 - round))
            )),
            "",
        ),
        Call("a day to compare", "claim_reconciliation", lease(70, json!({"providers": ["mtn"]})), "\"closed\":1"),
        Call("what the carrier says of a day", "sql", sql(reconciled(round, "record_reconciliation")), ""),
        Call("the day is compared", "sql", sql(reconciled(round, "finish_reconciliation")), ""),
        Call(
            "a bill beside what was counted",
            "sql",
            sql(format!(
                "insert into public.provider_statements (provider, month, messages) values ('mtn', '2026-0{}-01', 1);
                 select * from public.v_statement_differences where provider = 'mtn'",
                1 + round
            )),
            "",
        ),
    ]
}

/// A tool used in a session.
fn used(round: usize, name: &'static str, arguments: Value) -> Call {
    let said = json!({"text": "x", "segments": 1, "encoding": "gsm7"});
    let key = format!("used-{round}-{name}-{arguments}");
    let p = json!({"session_id": id("s", 4711 + round), "name": name, "arguments": arguments, "idempotency_key": key, "renditions": {"sms": said, "whatsapp": said}});
    // Refused or not, it has looked.
    Call(name, "run_agent_tool", p, "\"ok\":")
}

/// A call of this function about the day that the round has claimed.
fn reconciled(round: usize, function: &str) -> String {
    let lease = token((70 + 100 * round) as u32);
    format!(
        "select public.{function}(jsonb_build_object('reconciliation_id', r.id, 'lease_token', r.lease_token, 'unseen', true,
           'messages', '[{{\"provider_message_id\": \"OUT-{}\", \"status\": \"read\", \"occurred_at\": \"2030-01-01T00:00:00Z\"}}]'::jsonb))
           from public.reconciliations r where r.lease_token = '{lease}'",
        9000 + 2 * round
    )
}

/// What a relay says of the `n`th call of a round.
fn voice(round: usize, n: usize, more: Value) -> Value {
    let named = json!({"call_sid": format!("voice-{round}-{n}"), "from": format!("+25070000{n}77{round}"), "to": "+250788000000", "correlation_id": "plan"});
    with(named, more)
}

/// The id that `FILL` gives the `n`th of a kind.
fn id(kind: &str, n: usize) -> String {
    let kind = kind.bytes().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    format!("{kind:0>8}-0000-4000-8000-{n:012}")
}

/// The calls that come in pairs: a claim and its result.
async fn pairs(listener: &Listener, round: usize) {
    let client = &listener.client;
    let lease = |n: usize| json!({"correlation_id": "pair", "lease_token": token((500 + 10 * round + n) as u32)});
    let now = chrono::Utc::now().to_rfc3339();
    let deliveries = |claim: &Value, purpose: &str| {
        let delivery = |(channel, provider): (&str, &str)| {
            let times = json!({"started_at": now, "finished_at": now, "attempt": claim["attempt"], "provider_message_id": format!("{purpose}-{channel}-{round}")});
            json!({"id": claim["delivery_ids"][channel], "channel": channel, "provider": provider, "recipient": "+250700000001", "purpose": purpose,
                   "content": "text", "attempt": with(attempt(if channel == "sms" { "accepted" } else { "permanent" }, 0), times)})
        };
        json!([delivery(("sms", "mtn")), delivery(("whatsapp", "whatsapp"))])
    };
    let renditions = json!({"sms": {"text": "text"}, "whatsapp": {"kind": "text", "text": "text"}});

    let p = with(lease(1), json!({"call_ref": id("c", 20_000 + 2000 * round)}));
    let claim = rpc(client, "begin_call_notification", p).await;
    assert_eq!(claim["decision"], "go", "{claim}");
    let p = json!({"notification_id": claim["notification_id"], "outcome": "done", "deliveries": deliveries(&claim, "call_summary"),
                   "message": {"content": "text", "renditions": renditions},
                   "summary": {"headline": "A call", "points": [], "source": "model"}, "providers": [{"provider": "openai", "outcome": "accepted"}]});
    rpc(client, "finish_call_notification", with(lease(1), p)).await;

    let message = json!({"provider": "mtn", "provider_message_id": format!("pair-{round}"), "from": format!("+25070000600{round}"), "to": "8080", "text": "x"});
    let claim = rpc(client, "begin_sms_turn", with(lease(2), message)).await;
    assert_eq!(claim["decision"], "go", "{claim}");
    let p = json!({"turn_id": claim["turn_id"], "outcome": "answered", "deliveries": deliveries(&claim, "reply"),
                   "reply": {"content": "text", "source": "model", "agent_slug": "call-center", "renditions": renditions},
                   "providers": [{"provider": "openai", "outcome": "retryable"}]});
    rpc(client, "finish_sms_turn", with(lease(2), p)).await;

    let due = rpc(client, "claim_due_deliveries", with(lease(3), json!({"limit": 20}))).await;
    let due = due["deliveries"].as_array().unwrap();
    assert_eq!(due.len(), 20);
    // So few failures that no provider gets a pause.
    let outcomes = ["accepted", "accepted", "permanent", "accepted", "unknown", "retryable", "accepted"];
    let results: Vec<Value> = due
        .iter()
        .zip(outcomes.iter().cycle())
        .map(|(delivery, outcome)| {
            let times = json!({"started_at": now, "finished_at": now, "attempt": delivery["attempt"], "provider_message_id": format!("again-{}", delivery["id"])});
            json!({"id": delivery["id"], "attempt": with(attempt(outcome, 0), times)})
        })
        .collect();
    rpc(client, "record_delivery_results", with(lease(3), json!({"results": results}))).await;
}
