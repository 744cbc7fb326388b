//! The tools of agents: what each does, what it refuses, that it acts once a key, and that nobody reaches another person by one.

use std::time::Instant;

use ihuza_core::tool::{self, Surface};
use serde_json::{Value, json};

use crate::support::{Db, all, at_text, phone, root, rpc, text, token, unique, with};

/// A conversation of somebody new; its id.
async fn session(db: &Db, phone: &str) -> String {
    let sql = format!(
        "select o.session_id from private.open_session(private.default_client_id(), private.ensure_profile('{phone}'), 'sms', null, interval '72 hours', '{}') o",
        at_text(0)
    );
    text(&db.value(&sql).await, "")
}

/// What `run_agent_tool` is given for a tool that a model called in a text.
fn call(session: &str, name: &str, arguments: Value) -> Value {
    let mut p = serde_json::Map::new();
    tool::put_call(tool::prepare_value(name, &arguments, Surface::Text), &mut p);
    with(
        Value::Object(p),
        json!({"session_id": session, "name": name, "idempotency_key": format!("key-{}", unique()), "correlation_id": "corr", "now": at_text(1000)}),
    )
}

async fn run(db: &Db, session: &str, name: &str, arguments: Value) -> Value {
    db.rpc("run_agent_tool", call(session, name, arguments)).await
}

#[track_caller]
fn done(answer: &Value) -> &Value {
    assert_eq!(answer["ok"], true, "{answer}");
    &answer["result"]
}

#[track_caller]
fn refused(answer: &Value) -> String {
    assert_eq!(answer["ok"], false, "{answer}");
    text(answer, "/error")
}

#[tokio::test]
async fn the_database_and_the_core_know_the_same_tools_and_the_call_center_has_them_all() {
    let db = Db::new().await;
    let mut ours: Vec<&str> = tool::all().iter().map(|tool| tool.name).collect();
    ours.sort_unstable();
    let theirs = db.value("select array_agg(n order by n) from unnest(private.tool_names()) n").await;
    assert_eq!(theirs, json!(ours));
    let docs = std::fs::read_to_string(root().join("docs/tools.md")).unwrap();
    for tool in tool::all() {
        let line = docs.lines().find(|line| line.starts_with('|') && line.contains(&format!("`{}`", tool.name)));
        assert!(line.is_some_and(|line| line.contains(&format!("`{}`", tool.scope))), "docs/tools.md on {}", tool.name);
    }
    let agent = "from public.ai_agents where client_id is null and slug = 'call-center'";
    for (column, surface) in [("tools", Surface::Text), ("voice_tools", Surface::Voice)] {
        let names = db.value(&format!("select {column} {agent}")).await;
        let names: Vec<&str> = names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let all = tool::all().iter().filter(|tool| tool.surfaces.contains(&surface)).count();
        assert_eq!((names.len(), tool::offered(&names, surface).len()), (all, all), "{column}");
    }
    // What an operator has chosen stays, whatever the migrations bring.
    db.run("update public.ai_agents set tools = '[\"remember\"]', voice_tools = '[]'").await;
    let file = std::fs::read_to_string(root().join("migrations/20261121014040_tools.sql")).unwrap();
    db.run(&file).await;
    assert_eq!(
        db.value(&format!("select jsonb_build_array(tools, voice_tools) {agent}")).await,
        json!([["remember"], []])
    );
}

#[tokio::test]
async fn what_a_person_asks_for_is_a_row_that_the_next_message_changes() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    let none = run(&db, &session, "service_request_save", json!({"budget": 250_000})).await;
    assert!(refused(&none).contains("there is no open request"));
    let made = run(
        &db,
        &session,
        "service_request_save",
        json!({"kind": "housing", "area": "kicukilo", "budget": 300_000, "details": "two bedrooms"}),
    )
    .await;
    assert_eq!((&done(&made)["created"], &made["result"]["request"]["budget"]), (&json!(true), &json!(300_000)));
    // "Change budget to 250k"
    let changed = run(&db, &session, "service_request_save", json!({"budget": 250_000})).await;
    assert_eq!(done(&changed)["changed"], json!({"budget": [300_000, 250_000]}));
    assert_eq!(changed["result"]["request"]["number"], made["result"]["request"]["number"]);
    let row = db
        .value("select jsonb_build_array(r.budget::bigint, r.currency, r.details, p.name, r.state) from public.service_requests r join public.places p on p.id = r.place_id")
        .await;
    assert_eq!(row, json!([250_000, "RWF", "two bedrooms", "Kicukiro", "open"]));
    let history = db.value("select jsonb_agg(jsonb_build_array(changed_by, (select jsonb_agg(x::numeric::bigint) from jsonb_array_elements_text(changes -> 'budget') x), correlation_id) order by id) from public.request_changes").await;
    assert_eq!(history, json!([["person", [null, 300_000], "corr"], ["person", [300_000, 250_000], "corr"]]));

    // Another kind is another request; then it must be said which is meant.
    done(&run(&db, &session, "service_request_save", json!({"kind": "job", "details": "driver"})).await);
    let which = run(&db, &session, "service_request_save", json!({"budget": 1})).await;
    assert!(refused(&which).contains("several open requests"));
    assert_eq!(which["requests"].as_array().unwrap().len(), 2);
    let number = made["result"]["request"]["number"].clone();
    done(
        &run(&db, &session, "service_request_save", json!({"number": number, "currency": "USD", "budget": 200})).await,
    );
    done(&run(&db, &session, "service_request_save", json!({"kind": "housing", "state": "closed"})).await);
    let context = run(&db, &session, "session_get_context", json!({})).await;
    assert_eq!(done(&context)["requests"].as_array().unwrap().len(), 1);
    assert_eq!(context["result"]["requests"][0]["kind"], "job");
    let budget = "select jsonb_build_array(budget::bigint, currency, state, closed_at is not null) from public.service_requests where kind = 'housing'";
    assert_eq!(db.value(budget).await, json!([200, "USD", "closed", true]));
}

#[tokio::test]
async fn a_request_changes_only_as_it_is_meant() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    let save = |arguments: Value| run(&db, &session, "service_request_save", arguments);
    let made = save(json!({"kind": "housing", "budget": 250_000})).await;
    let number = done(&made)["request"]["number"].clone();
    let row = "select jsonb_build_array(budget::bigint, currency, state) from public.service_requests";
    // An amount does not become another by its currency alone.
    let dollars = save(json!({"currency": "USD"})).await;
    assert_eq!(refused(&dollars), "the budget is in RWF: for another currency give the budget in it");
    done(&save(json!({"currency": "RWF", "details": "two bedrooms"})).await);
    assert!(refused(&save(json!({"number": number, "kind": "job", "budget": 1})).await).contains("is about housing"));
    assert_eq!(db.value(row).await, json!([250_000, "RWF", "open"]));
    // What is closed is changed only with being opened again.
    done(&save(json!({"kind": "housing", "state": "closed"})).await);
    for late in [json!({"number": number, "budget": 1}), json!({"number": number, "budget": 1, "state": "closed"})] {
        assert!(refused(&save(late).await).starts_with("that request is closed: nothing was changed"));
    }
    done(&save(json!({"number": number, "state": "closed"})).await);
    assert_eq!(db.value(row).await, json!([250_000, "RWF", "closed"]));
    done(&save(json!({"number": number, "budget": 300_000, "state": "open"})).await);
    assert_eq!(db.value(row).await, json!([300_000, "RWF", "open"]));
    // The bound of the core is that of the table.
    done(&save(json!({"budget": 999_999_999_999_u64})).await);
    assert!(refused(&save(json!({"budget": 1_000_000_000_000_u64})).await).contains("from 0 to 999999999999"));
}

#[tokio::test]
async fn what_is_closed_is_not_said_to_be_active() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    let status = |to: &str| run(&db, &session, "session_update_status", json!({"status": to, "note": to}));
    assert_eq!(done(&status("closed").await)["status"], "closed");
    for late in ["active", "follow_up"] {
        assert!(
            refused(&status(late).await).starts_with("this conversation is closed and stays so: nothing was changed")
        );
    }
    assert_eq!(done(&status("closed").await)["status"], "closed");
    assert_eq!(
        db.value("select jsonb_build_array(status, context -> 'note') from public.omnichannel_sessions").await,
        json!(["closed", "closed"])
    );
}

#[tokio::test]
async fn forgotten_words_are_nowhere() {
    let db = Db::new().await;
    let (mine, theirs) = (session(&db, &phone()).await, session(&db, &phone()).await);
    let first = call(&mine, "remember", json!({"key": "Preferred area", "value": "Secret 1"}));
    let kept = db.rpc("run_agent_tool", first.clone()).await;
    for (session, key, value) in
        [(&mine, "preferred_area", "Secret 2"), (&mine, "pets", "Kept 1"), (&theirs, "preferred_area", "Kept 2")]
    {
        done(&run(&db, session, "remember", json!({"key": key, "value": value})).await);
    }
    let called =
        async || text(&db.value("select string_agg(to_jsonb(m)::text, ' ') from public.mcp_tool_calls m").await, "");
    done(&run(&db, &mine, "forget", json!({"key": "preferred area"})).await);
    let left = called().await;
    assert!(!left.contains("Secret") && left.contains("Kept 1") && left.contains("Kept 2"), "{left}");
    // A call that is repeated is told what it was told, and keeps nothing again.
    assert_eq!(db.rpc("run_agent_tool", first).await, kept);
    done(&run(&db, &mine, "forget", json!({})).await);
    let left = called().await;
    assert!(!left.contains("Kept 1") && left.contains("Kept 2"), "{left}");
    assert_eq!(db.count("select count(*) from public.voice_memories").await, 1);
}

#[tokio::test]
async fn a_ride_is_booked_changed_and_cancelled_by_its_person_and_driven_by_operators() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    let book = |arguments: Value| run(&db, &session, "book_transport", arguments);
    assert!(refused(&book(json!({"action": "create", "pickup": "Remera"})).await).contains("pickup and destination"));
    let ride = json!({"action": "create", "pickup": "near Kimirongo market", "destination": "airport", "pickup_at": "2030-01-02T08:30", "passengers": 2});
    let late = book(with(ride.clone(), json!({"pickup_at": "2029-12-31T08:30"}))).await;
    assert!(refused(&late).contains("in Kigali it is now 2030-01-01T10:00"), "{late}");
    let made = book(ride.clone()).await;
    let booking = &done(&made)["booking"];
    assert_eq!((&booking["state"], &booking["pickup_at"]), (&json!("requested"), &json!("2030-01-02T08:30")));
    let stored = db
        .value("select jsonb_build_array(to_char(b.pickup_at at time zone 'UTC', 'HH24:MI'), p.name) from public.transport_bookings b join public.places p on p.id = b.pickup_place_id")
        .await;
    assert_eq!(stored, json!(["06:30", "Kimironko"]));
    // Asked for twice by a model that forgot, with another key.
    assert_eq!(done(&book(ride).await)["already_booked"], true);

    let operator = async |more: Value| {
        db.try_rpc("update_transport_booking", with(json!({"number": booking["number"], "operator": "Aline"}), more))
            .await
    };
    assert_eq!(operator(json!({"state": "done"})).await.unwrap_err().code, "PT409");
    operator(json!({"state": "confirmed", "price": 5000})).await.unwrap();
    operator(json!({"state": "assigned", "driver": "Eric, RAD 123 A"})).await.unwrap();
    // The person wants it later: whoever had agreed is asked again.
    let changed = book(json!({"action": "change", "pickup_at": "2030-01-02T09:00"})).await;
    assert_eq!(
        done(&changed)["changed"],
        json!({"pickup_at": ["2030-01-02T08:30", "2030-01-02T09:00"], "state": ["assigned", "requested"],
               "driver": ["Eric, RAD 123 A", null]})
    );
    assert!(refused(&book(json!({"action": "change"})).await).contains("what is to be changed"));
    assert_eq!(done(&book(json!({"action": "cancel"})).await)["booking"]["state"], "cancelled");
    assert_eq!(operator(json!({"state": "confirmed"})).await.unwrap_err().code, "PT409");
    assert!(refused(&book(json!({"action": "change", "passengers": 3})).await).contains("no such open booking"));
    let history = db
        .value("select jsonb_agg(jsonb_build_array(changed_by, changes #> '{state,1}') order by id) from public.request_changes where changes ? 'state'")
        .await;
    assert_eq!(
        history,
        json!([
            ["person", "requested"],
            ["Aline", "confirmed"],
            ["Aline", "assigned"],
            ["person", "requested"],
            ["person", "cancelled"]
        ])
    );
    assert_eq!(db.count("select count(*) from public.transport_bookings where cancelled_by = 'person'").await, 1);

    // Two at once: it must be said which.
    for pickup in ["Gisozi", "Remera"] {
        done(&book(json!({"action": "create", "pickup": pickup, "destination": "town"})).await);
    }
    let which = book(json!({"action": "cancel"})).await;
    assert_eq!((refused(&which).contains("several"), which["bookings"].as_array().unwrap().len()), (true, 2));
}

#[tokio::test]
async fn a_ride_stays_as_agreed_until_it_is_another_ride() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    let book = |arguments: Value| run(&db, &session, "book_transport", arguments);
    let ride = json!({"action": "create", "pickup": "Remera", "destination": "Airport", "pickup_at": "2030-01-02T08:30", "vehicle": "car"});
    let made = book(ride.clone()).await;
    let number = done(&made)["booking"]["number"].clone();
    let operator = async |more: Value| {
        db.try_rpc("update_transport_booking", with(json!({"number": number, "operator": "Aline"}), more)).await
    };
    let stands = "select jsonb_build_array(state, driver, trim_scale(price), currency, passengers) from public.transport_bookings";
    operator(json!({"state": "assigned", "driver": "Eric", "price": 5000})).await.unwrap();

    // What it is already is no change.
    let same = json!({"action": "change", "pickup": "remera", "destination": "Airport", "pickup_at": "2030-01-02T08:30", "passengers": 1, "vehicle": "car"});
    let unchanged = book(same).await;
    assert_eq!(done(&unchanged)["changed"], json!({}), "{unchanged}");
    assert_eq!(db.value(stands).await, json!(["assigned", "Eric", 5000, "RWF", 1]));
    // Booked again for others: they are told that the first stands.
    let others = book(with(ride.clone(), json!({"passengers": 4, "vehicle": "van"}))).await;
    assert_eq!(done(&others)["not_changed"], json!({"passengers": [1, 4], "vehicle": ["car", "van"]}), "{others}");
    assert!(text(&others, "/result/note").contains("nothing is changed"), "{others}");
    assert_eq!(db.value(stands).await, json!(["assigned", "Eric", 5000, "RWF", 1]));
    assert_eq!(done(&book(ride).await).get("not_changed"), None);
    // Another time keeps the price; another way does not.
    done(&book(json!({"action": "change", "pickup_at": "2030-01-02T09:00"})).await);
    assert_eq!(db.value(stands).await, json!(["requested", null, 5000, "RWF", 1]));
    assert_eq!(operator(json!({"currency": "USD"})).await.unwrap_err().code, "PT400");
    let farther = book(json!({"action": "change", "destination": "Musanze"})).await;
    assert_eq!(done(&farther)["changed"]["price"], json!([5000, null]), "{farther}");
    assert_eq!(db.value(stands).await, json!(["requested", null, null, null, 1]));
    operator(json!({"price": 40_000})).await.unwrap();
    done(&book(json!({"action": "change", "vehicle": "bus"})).await);
    assert_eq!(db.value(stands).await, json!(["requested", null, null, null, 1]));

    done(&book(json!({"action": "cancel"})).await);
    for late in [json!({"driver": "Eric"}), json!({"price": 1}), json!({"state": "cancelled", "driver": "Eric"})] {
        assert_eq!(operator(late.clone()).await.unwrap_err().code, "PT409", "{late}");
    }
    operator(json!({"state": "cancelled"})).await.unwrap();
    assert_eq!(db.value(stands).await, json!(["cancelled", null, null, null, 1]));
}

#[tokio::test]
async fn twenty_calls_at_once_with_one_key_act_once_and_are_told_the_same() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(db.connect().await);
    }
    let said = json!({"sms": {"text": "Muraho", "segments": 1, "encoding": "gsm7"}, "whatsapp": {"kind": "text", "text": "Muraho"}});
    let ride = json!({"action": "create", "pickup": "Remera", "destination": "Gisozi"});
    let calls = [
        (call(&session, "book_transport", ride.clone()), "transport_bookings"),
        (call(&session, "service_request_save", json!({"kind": "job"})), "service_requests"),
        (call(&session, "transfer_to_human", json!({"reason": "asked for"})), "handoffs"),
        (
            with(call(&session, "messaging_send_sms", json!({"text": "Muraho"})), json!({"renditions": said})),
            "message_delivery_log",
        ),
    ];
    for (p, table) in calls {
        let answers = all(clients.iter().map(|client| rpc(client, "run_agent_tool", p.clone()))).await;
        assert!(answers.iter().all(|answer| *answer == answers[0] && answer["ok"] == true), "{answers:?}");
        assert_eq!(db.count(&format!("select count(*) from public.{table}")).await, 1, "{table}");
        let key = text(&p, "/idempotency_key");
        let rows =
            format!("select count(*) from public.mcp_tool_calls where idempotency_key = 'session:{session}:{key}'");
        assert_eq!(db.count(&rows).await, 1, "{table}");
    }
    // With a key each: one ride is one booking all the same.
    let other = json!({"action": "create", "pickup": "Remera", "destination": "Kanombe"});
    let answers = all(clients
        .iter()
        .map(|client| rpc(client, "run_agent_tool", call(&session, "book_transport", other.clone()))))
    .await;
    assert_eq!(answers.iter().filter(|answer| answer["result"]["created"] == true).count(), 1);
    assert_eq!(db.count("select count(*) from public.transport_bookings").await, 2);
}

#[tokio::test]
async fn what_was_refused_may_be_done_later_under_the_same_key_and_what_was_done_is_not_done_again() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    let cancel = call(&session, "book_transport", json!({"action": "cancel"}));
    assert!(refused(&db.rpc("run_agent_tool", cancel.clone()).await).contains("no such open booking"));
    done(
        &run(&db, &session, "book_transport", json!({"action": "create", "pickup": "Remera", "destination": "Gisozi"}))
            .await,
    );
    let answer = db.rpc("run_agent_tool", cancel.clone()).await;
    assert_eq!(done(&answer)["booking"]["state"], "cancelled");
    done(
        &run(&db, &session, "book_transport", json!({"action": "create", "pickup": "Remera", "destination": "Gisozi"}))
            .await,
    );
    assert_eq!(db.rpc("run_agent_tool", cancel).await, answer);
    assert_eq!(db.count("select count(*) from public.transport_bookings where state = 'requested'").await, 1);
}

#[tokio::test]
async fn a_key_is_of_one_call_in_one_conversation() {
    let db = Db::new().await;
    let (mine, theirs) = (session(&db, &phone()).await, session(&db, &phone()).await);
    let keyed = |session: &str, name: &str, arguments: Value| {
        with(call(session, name, arguments), json!({"idempotency_key": "order-1"}))
    };
    let memory = keyed(&mine, "remember", json!({"key": "area", "value": "Secret"}));
    let first = db.rpc("run_agent_tool", memory.clone()).await;
    done(&first);
    // Another tool, or other arguments, is not told that it was done.
    let ride = json!({"action": "create", "pickup": "Remera", "destination": "Gisozi"});
    let other = db.rpc("run_agent_tool", keyed(&mine, "book_transport", ride.clone())).await;
    assert_eq!(refused(&other), "this idempotency key was used for remember: nothing was done; use a new key");
    let changed = keyed(&mine, "remember", json!({"key": "area", "value": "Gisozi"}));
    let changed = db.rpc("run_agent_tool", changed).await;
    assert_eq!(
        refused(&changed),
        "this idempotency key was used with other arguments: nothing was done; use a new key"
    );
    assert_eq!(db.rpc("run_agent_tool", memory).await, first);
    // With or without an argument that is null is the same call.
    let bare = json!({"session_id": mine, "name": "forget", "idempotency_key": "order-2", "now": at_text(1000)});
    let forgotten = db.rpc("run_agent_tool", with(bare.clone(), json!({"arguments": {"key": "nothing"}}))).await;
    let with_null = with(bare, json!({"arguments": {"key": "nothing", "more": null}}));
    assert_eq!(db.rpc("run_agent_tool", with_null).await, forgotten);
    // What somebody else did with it is none of theirs.
    assert_eq!(done(&db.rpc("run_agent_tool", keyed(&theirs, "book_transport", ride)).await)["created"], true);
    // Nor where a caller says that its key holds the conversation already.
    let raw = |session: &str| {
        let p = keyed(session, "remember", json!({"key": "area", "value": "Secret"}));
        with(p, json!({"surface": "mcp"}))
    };
    done(&db.rpc("run_agent_tool", raw(&mine)).await);
    assert!(refused(&db.rpc("run_agent_tool", raw(&theirs)).await).contains("in another conversation"));
    let rows = "select jsonb_object_agg(t.name, t.count) from (select name, count(*) from public.mcp_tool_calls group by name) t";
    assert_eq!(db.value(rows).await, json!({"remember": 2, "forget": 1, "book_transport": 1}));
    assert_eq!(db.count("select count(*) from public.transport_bookings").await, 1);
}

#[tokio::test]
async fn nothing_that_a_model_says_reaches_another_person() {
    let db = Db::new().await;
    let (mine, theirs) = (session(&db, &phone()).await, session(&db, &phone()).await);
    let booking = run(
        &db,
        &theirs,
        "book_transport",
        json!({"action": "create", "pickup": "Secret 1", "destination": "Secret 2"}),
    )
    .await;
    let request = run(&db, &theirs, "service_request_save", json!({"kind": "housing", "details": "Secret 3"})).await;
    done(&run(&db, &theirs, "remember", json!({"key": "wife", "value": "Secret 4"})).await);
    done(&run(&db, &theirs, "transfer_to_human", json!({"reason": "Secret 5"})).await);
    let state = "select jsonb_build_array((select jsonb_agg(to_jsonb(b)) from public.transport_bookings b), (select jsonb_agg(to_jsonb(r)) from public.service_requests r),
                   (select jsonb_agg(to_jsonb(m)) from public.voice_memories m), (select jsonb_agg(to_jsonb(h)) from public.handoffs h))";
    let before = db.value(state).await;
    let profile = db.value(&format!("select profile_id from public.omnichannel_sessions where id = '{theirs}'")).await;
    let (booked, asked) = (&booking["result"]["booking"]["number"], &request["result"]["request"]["number"]);
    let tries = [
        ("book_transport", json!({"action": "cancel", "number": booked})),
        ("book_transport", json!({"action": "change", "number": booked, "pickup": "Elsewhere"})),
        ("service_request_save", json!({"number": asked, "budget": 1})),
        ("service_request_save", json!({"number": asked, "kind": "housing", "state": "closed"})),
        ("session_get_context", json!({})),
        ("forget", json!({"key": "wife"})),
        ("forget", json!({})),
    ];
    for (name, arguments) in &tries {
        // Past the check of the core as well: whoever calls the function directly with an id of somebody else's among the arguments.
        let forged = with(
            arguments.clone(),
            json!({"profile_id": profile, "session_id": theirs, "client_id": token(9), "key": "wife"}),
        );
        for arguments in [arguments.clone(), forged] {
            let p = with(call(&mine, name, json!({})), json!({"arguments": arguments, "refused": null}));
            let answer = db.rpc("run_agent_tool", p).await.to_string();
            assert!(!answer.contains("Secret"), "{name}: {answer}");
        }
    }
    assert_eq!(db.value(state).await, before);
    // The core refuses them before, by name.
    let said = run(&db, &mine, "forget", json!({"profile_id": profile})).await;
    assert!(refused(&said).starts_with("there is no argument profile_id"), "{said}");
}

#[tokio::test]
async fn an_agent_uses_what_its_row_names_and_every_call_leaves_a_row() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    db.run("update public.ai_agents set tools = '[\"remember\", \"search_services\", \"drop_tables\"]'").await;
    let ride = json!({"action": "create", "pickup": "a", "destination": "b"});
    assert_eq!(refused(&run(&db, &session, "book_transport", ride).await), "book_transport may not be used here");
    assert_eq!(db.count("select count(*) from public.transport_bookings").await, 0);
    let unknown = with(call(&session, "drop_tables", json!({})), json!({"refused": null}));
    assert_eq!(refused(&db.rpc("run_agent_tool", unknown).await), "there is no tool drop_tables");
    // A token may allow less than the agent has.
    let narrowed =
        with(call(&session, "remember", json!({"key": "a", "value": "b"})), json!({"tools": ["search_services"]}));
    assert_eq!(refused(&db.rpc("run_agent_tool", narrowed).await), "remember may not be used here");
    done(&run(&db, &session, "remember", json!({"key": "Preferred area", "value": "Remera"})).await);
    let wrong = run(&db, &session, "remember", json!({"key": "a"})).await;
    assert!(refused(&wrong).starts_with("argument value is missing"));
    let rows = db
        .value("select jsonb_agg(jsonb_build_array(name, result -> 'ok', finished_at is not null) order by finished_at) from public.mcp_tool_calls")
        .await;
    assert_eq!(
        rows,
        json!([
            ["book_transport", false, true],
            ["drop_tables", false, true],
            ["remember", false, true],
            ["remember", true, true],
            ["remember", false, true]
        ])
    );
    let memory = db
        .value(
            "select jsonb_build_array(key, value, source, trim_scale(confidence), said_at) from public.voice_memories",
        )
        .await;
    assert_eq!(
        (&memory[0], &memory[1], &memory[2], &memory[3]),
        (&json!("preferred_area"), &json!("Remera"), &json!("agent"), &json!(1))
    );
}

#[tokio::test]
async fn in_a_turn_the_agent_that_answers_in_it_says_what_may_be_used() {
    let db = Db::new().await;
    let message = |from: &str, n: u64| {
        json!({"correlation_id": format!("c-{n}"), "provider": "mtn", "provider_message_id": format!("m-{n}"), "from": from, "to": "8080", "text": "x",
               "lease_token": token(1), "now": at_text(0)})
    };
    let turn = db.rpc("begin_sms_turn", message(&phone(), unique())).await;
    let other = db.rpc("begin_sms_turn", message(&phone(), unique())).await;
    let named = |turn_id: &Value, name: &str, arguments: Value| {
        with(call(&text(&turn, "/session/id"), name, arguments), json!({"turn_id": turn_id}))
    };
    let memory = json!({"key": "a", "value": "b"});
    done(&db.rpc("run_agent_tool", named(&turn["turn_id"], "remember", memory.clone())).await);
    db.run(
        "alter table public.conversation_turns add column if not exists agent_id uuid;
         insert into public.ai_agents (slug, display_name, tools) values ('narrow', 'Narrow', '[\"forget\"]');
         update public.conversation_turns set agent_id = (select id from public.ai_agents where slug = 'narrow')",
    )
    .await;
    let answer = db.rpc("run_agent_tool", named(&turn["turn_id"], "remember", memory)).await;
    assert_eq!(refused(&answer), "remember may not be used here");
    done(&db.rpc("run_agent_tool", named(&turn["turn_id"], "forget", json!({}))).await);
    let answer = db.rpc("run_agent_tool", named(&other["turn_id"], "forget", json!({}))).await;
    assert_eq!(refused(&answer), "the turn is of another session");
}

#[tokio::test]
async fn preferences_are_kept_with_source_and_date_and_open_nothing_that_stop_has_closed() {
    let db = Db::new().await;
    let number = phone();
    let session = session(&db, &number).await;
    let prefer = |arguments: Value| run(&db, &session, "profile_update_preferences", arguments);
    let chosen =
        prefer(json!({"channels": "sms_only", "language": "rw", "quiet_from": "21:00", "quiet_until": "06:30"})).await;
    assert_eq!(done(&chosen)["channels"], "sms_only");
    let row = format!(
        "select jsonb_build_array(locale, notification_preferences, allows_sms) from public.profiles where phone_number = '{number}'"
    );
    let kept = db.value(&row).await;
    assert_eq!(
        (&kept[0], &kept[1]["policy"], &kept[1]["policy_source"]),
        (&json!("rw"), &json!("sms_only"), &json!("agent"))
    );
    assert_eq!(kept[1]["quiet_hours"], json!({"from": "21:00", "until": "06:30"}));
    assert!(text(&kept, "/1/policy_at").starts_with("2030-01-01T08:00:01"), "{kept}");
    done(&prefer(json!({"quiet_hours": "off"})).await);
    assert_eq!(db.value(&row).await[1]["quiet_hours"], false);
    for (wrong, why) in [
        (json!({}), "say what"),
        (json!({"quiet_from": "21:00"}), "belong together"),
        (json!({"quiet_from": "21:00", "quiet_until": "21:00"}), "two different times"),
        (json!({"language": "de"}), "argument language is not allowed"),
    ] {
        let said = refused(&prefer(wrong).await);
        assert!(said.contains(why), "{said}");
    }
    db.run(&format!(
        "update public.profiles set allows_sms = false, allows_sms_source = 'keyword' where phone_number = '{number}'"
    ))
    .await;
    let again = prefer(json!({"channels": "both"})).await;
    assert!(text(done(&again), "/notes/0").contains("START"), "{again}");
    assert_eq!(db.value(&row).await[2], false);
}

#[tokio::test]
async fn hand_overs_wait_in_a_queue_from_which_each_operator_takes_another() {
    let db = Db::new().await;
    for n in 0..6 {
        let session = session(&db, &phone()).await;
        let urgent = if n == 4 { "yes" } else { "no" };
        let answer =
            run(&db, &session, "transfer_to_human", json!({"reason": format!("reason {n}"), "urgent": urgent})).await;
        let before = if n == 4 { 0 } else { n };
        assert_eq!((&done(&answer)["state"], &answer["result"]["waiting_before"]), (&json!("waiting"), &json!(before)));
        assert_eq!(answer["result"].get("transfer_to"), None, "a text is not put through");
        // Asked for again: one a person is open.
        done(&run(&db, &session, "transfer_to_human", json!({"reason": format!("reason {n}")})).await);
    }
    assert_eq!(db.count("select count(*) from public.handoffs where state = 'waiting'").await, 6);
    let told = "select coalesce(jsonb_agg(severity order by details -> 'number'), '[]') from public.alerts where kind = 'handoff_waiting' and resolved_at is null";
    assert_eq!(db.value(told).await, json!(["warning", "warning", "warning", "warning", "critical", "warning"]));
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(db.connect().await);
    }
    let client = db.value("select private.default_client_id()").await;
    let taken = all(clients.iter().enumerate().map(|(n, connection)| {
        rpc(
            connection,
            "take_handoff",
            json!({"operator": format!("operator {n}"), "client_id": client, "now": at_text(5000)}),
        )
    }))
    .await;
    let mut ids: Vec<String> =
        taken.iter().filter(|found| found["decision"] == "taken").map(|found| text(found, "/handoff/id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), taken.iter().filter(|found| found["decision"] == "none").count()), (6, 2));
    let first = taken.iter().find(|found| found["decision"] == "taken").unwrap();
    assert!(text(first, "/phone_number").starts_with("+250") && first["context"]["messages"].is_array());
    let urgent = taken.iter().find(|found| found["handoff"]["urgent"] == true).unwrap();
    let by = text(urgent, "/handoff/taken_by");

    assert_eq!(db.value(told).await, json!([]));
    // Given back it waits again in its old place; closed it is gone.
    let id = text(urgent, "/handoff/id");
    let not_mine = json!({"id": id, "operator": "somebody else"});
    assert_eq!(db.try_rpc("release_handoff", not_mine).await.unwrap_err().code, "PT404");
    db.rpc("release_handoff", json!({"id": id, "operator": by})).await;
    assert_eq!(db.value(told).await, json!(["critical"]));
    let again = db.rpc("take_handoff", json!({"operator": "Aline", "client_id": client})).await;
    assert_eq!(text(&again, "/handoff/id"), id);
    db.rpc("close_handoff", json!({"id": id, "operator": "Aline", "outcome": "called back"})).await;
    assert_eq!(db.try_rpc("close_handoff", json!({"id": id, "operator": "Aline"})).await.unwrap_err().code, "PT404");
    assert_eq!(db.rpc("take_handoff", json!({"operator": "Aline", "client_id": client})).await["decision"], "none");
    assert_eq!(db.value(told).await, json!([]));
    let other = db.rpc("take_handoff", json!({"operator": "Aline", "client_id": token(1)})).await;
    assert_eq!(other["decision"], "none", "of another client there is nothing to take");
}

#[tokio::test]
async fn a_call_is_put_through_where_the_client_has_a_number_and_its_hand_over_follows_the_relay() {
    let db = Db::new().await;
    db.run("update public.clients set settings = settings || '{\"handoff_number\": \"+250788000111\", \"handoff_numbers\": {\"billing\": \"+250788000222\"}}'").await;
    for (n, outcome, state) in [(1, "confirmed", "closed"), (2, "failed", "waiting")] {
        let named = json!({"call_sid": format!("call-{n}"), "from": phone(), "to": "+250788000000", "correlation_id": "c", "now": at_text(0)});
        db.rpc("open_voice_call", with(named.clone(), json!({"model": "m"}))).await;
        let arguments = json!({"reason": "a bill", "department": if n == 1 { "billing" } else { "sales" }});
        let tool = json!({"name": "transfer_to_human", "idempotency_key": "fc_1", "arguments": arguments});
        let answer = db.rpc("run_voice_tool", with(named.clone(), tool)).await;
        let number = if n == 1 { "+250788000222" } else { "+250788000111" };
        assert_eq!(done(&answer)["transfer_to"], number);
        let events = json!({"events": [{"seq": 1, "type": "transferred", "outcome": outcome}]});
        db.rpc("record_voice_events", with(named, events)).await;
        let row = db.value(&format!("select jsonb_build_array(h.state, h.transfer_outcome) from public.handoffs h join public.voice_calls c on c.id = h.call_id where c.provider_call_id = 'call-{n}'")).await;
        assert_eq!(row, json!([state, outcome]));
    }
    // Who shows no number is handed over too, and nothing else is kept for them.
    let hidden = json!({"call_sid": "hidden", "from": "anonymous", "to": "+250788000000", "now": at_text(0)});
    db.rpc("open_voice_call", with(hidden.clone(), json!({"model": "m"}))).await;
    let tool = |name: &str, arguments: Value| {
        with(hidden.clone(), json!({"name": name, "idempotency_key": name, "arguments": arguments}))
    };
    done(&db.rpc("run_voice_tool", tool("transfer_to_human", json!({"reason": "asked for"}))).await);
    let ride = json!({"action": "create", "pickup": "a", "destination": "b"});
    assert!(refused(&db.rpc("run_voice_tool", tool("book_transport", ride)).await).contains("anonymous"));
    assert_eq!(db.count("select count(*) from public.handoffs where profile_id is null").await, 1);
    db.run("update public.voice_calls set erased_at = now() where provider_call_id = 'hidden'").await;
    assert_eq!(db.count("select count(*) from public.handoffs where profile_id is null").await, 0);
}

/// The newest deliveries of tools: channel, status, reason.
async fn sent(db: &Db) -> Value {
    db.value(
        "select coalesce(jsonb_agg(jsonb_build_array(channel, status, suppress_reason) order by channel), '[]') from public.message_delivery_log
          where idempotency_key like 'tool:%' and created_at = (select max(created_at) from public.message_delivery_log)",
    )
    .await
}

#[tokio::test]
async fn a_message_of_a_tool_goes_the_way_of_every_message_and_to_nobody_else() {
    let db = Db::new().await;
    let number = phone();
    let session = session(&db, &number).await;
    let send = async |how: &str, text: &str| {
        run(&db, &session, &format!("messaging_send_{how}"), json!({ "text": text })).await
    };
    let person = async |change: &str| {
        db.run(&format!("update public.profiles set {change} where phone_number = '{number}'")).await
    };

    let answer = send("sms", "The office is in Remera – KG 11").await;
    assert_eq!(done(&answer), &json!({"sms": "on its way"}));
    assert_eq!(answer["deliveries"].as_array().unwrap().len(), 1);
    let p = json!({"lease_token": token(1), "correlation_id": "sweep", "now": at_text(2000)});
    let due = db.rpc("claim_due_deliveries", p).await;
    let delivery = &due["deliveries"][0];
    assert_eq!(delivery["recipient"], number);
    assert_eq!(
        (&delivery["payload"]["text"], &delivery["purpose"]),
        (&json!("The office is in Remera - KG 11"), &json!("message"))
    );
    let message =
        db.value("select jsonb_build_array(role, channel, content, source) from public.conversation_messages").await;
    assert_eq!(message, json!(["assistant", "sms", "The office is in Remera - KG 11", "tool"]));

    assert_eq!(refused(&send("whatsapp", "a").await), "the message was not sent; tell it here instead");
    assert_eq!(sent(&db).await, json!([["whatsapp", "suppressed", "service_window_closed"]]));
    done(&send("dual", "b").await);
    assert_eq!(sent(&db).await, json!([["sms", "queued", null]]));
    person(&format!(
        "has_whatsapp = true, has_whatsapp_source = 'inbound', last_whatsapp_inbound_at = '{}'",
        at_text(0)
    ))
    .await;
    done(&send("dual", "c").await);
    assert_eq!(sent(&db).await, json!([["sms", "queued", null], ["whatsapp", "queued", null]]));
    for (policy, expected) in [
        ("whatsapp_only", json!([["whatsapp", "queued", null]])),
        ("sms_only", json!([["sms", "queued", null]])),
        ("none", json!([["sms", "suppressed", "policy_none"], ["whatsapp", "suppressed", "policy_none"]])),
    ] {
        person(&format!("notification_preferences = '{{\"policy\": \"{policy}\"}}'")).await;
        send("dual", "d").await;
        assert_eq!(sent(&db).await, expected, "{policy}");
    }
    person("notification_preferences = '{}', allows_sms = false").await;
    refused(&send("sms", "e").await);
    assert_eq!(sent(&db).await, json!([["sms", "suppressed", "opted_out"]]));
    // What nobody got is no part of the conversation.
    assert_eq!(db.count("select count(*) from public.conversation_messages").await, 5);
}

#[tokio::test]
async fn guards_hold_for_messages_of_tools_and_a_model_in_circles_is_stopped() {
    let db = Db::new().await;
    let session_of = async || session(&db, &phone()).await;
    let session = session_of().await;
    let send = |session: &str| call(session, "messaging_send_sms", json!({"text": "x"}));
    db.run("insert into public.client_budgets (client_id, currency, hard_limit, sms_segment_price, whatsapp_template_price) values (private.default_client_id(), 'RWF', 25, 10, 20)").await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(db.rpc("run_agent_tool", send(&session)).await);
    }
    assert_eq!(answers.iter().map(|answer| answer["ok"] == true).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(sent(&db).await, json!([["sms", "suppressed", "budget"]]));
    // What was permitted is claimed without being counted again.
    let p = json!({"lease_token": token(1), "correlation_id": "sweep", "now": at_text(2000)});
    assert_eq!(db.rpc("claim_due_deliveries", p).await["deliveries"].as_array().unwrap().len(), 2);
    assert_eq!(db.value("select trim_scale(committed) from public.v_budget_months").await, 20);
    db.run("delete from public.client_budgets").await;
    let other = session_of().await;
    for n in 1..=11 {
        let answer = db.rpc("run_agent_tool", send(&other)).await;
        assert_eq!(answer["ok"], n <= 10, "{n}: {answer}");
    }
}

#[tokio::test]
async fn ten_messages_an_hour_are_ten_where_many_are_asked_for_at_once() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    let mut clients = Vec::new();
    for _ in 0..24 {
        clients.push(db.connect().await);
    }
    let answers = all(clients.iter().enumerate().map(|(n, client)| {
        rpc(client, "run_agent_tool", call(&session, "messaging_send_sms", json!({"text": format!("message {n}")})))
    }))
    .await;
    assert_eq!(answers.iter().filter(|answer| answer["ok"] == true).count(), 10);
    assert_eq!(db.count("select count(*) from public.message_delivery_log where status = 'queued'").await, 10);
}

#[tokio::test]
async fn a_client_of_mcp_wakes_nobody_and_who_is_awake_is_written_to() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    // It is ten o'clock in Kigali.
    db.run(r#"update public.profiles set notification_preferences = '{"quiet_hours": {"from": "09:00", "until": "11:30"}}'"#).await;
    let send = |text: &str, surface: &str| {
        with(call(&session, "messaging_send_dual", json!({ "text": text })), json!({"surface": surface}))
    };
    let said = refused(&db.rpc("run_agent_tool", send("a", "mcp")).await);
    assert!(said.contains("until 2030-01-01T11:30 in Kigali"), "{said}");
    assert_eq!(
        sent(&db).await,
        json!([["sms", "suppressed", "quiet_hours"], ["whatsapp", "suppressed", "service_window_closed"]])
    );
    // In a turn it is part of an answer.
    done(&db.rpc("run_agent_tool", send("b", "text")).await);
    db.run(&format!(
        "insert into public.conversation_messages (client_id, thread_id, session_id, profile_id, direction, role, channel, kind, content, occurred_at)
         select t.client_id, t.id, s.id, s.profile_id, 'inbound', 'user', 'sms', 'conversation', 'x', '{}'
           from public.conversation_threads t join public.omnichannel_sessions s on s.id = t.session_id",
        at_text(0)
    ))
    .await;
    done(&db.rpc("run_agent_tool", send("c", "mcp")).await);
}

#[tokio::test]
async fn a_service_is_found_where_it_is_and_a_district_as_it_is_heard() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    db.run(
        "insert into public.services (name, category, area, keywords) values
           ('Garden house', 'housing', 'Kimironko', 'inzu apartment'), ('Town flat', 'housing', 'Nyamirambo', 'apartment'),
           ('Family house', 'housing', 'Kicukiro', 'inzu'), ('Any house', 'housing', null, 'inzu'), ('Lake house', 'housing', 'Rubavu', 'inzu')",
    )
    .await;
    for (heard, meant) in [
        ("gasabo", "Gasabo"),
        ("Gasbo", "Gasabo"),
        ("kicukilo", "Kicukiro"),
        ("Nyarugenje", "Nyarugenge"),
        ("lemera", "Remera"),
        ("kimirongo", "Kimironko"),
        ("nyamirmbo", "Nyamirambo"),
        ("Kacyru", "Kacyiru"),
        ("near the market of Kimironko", "Kimironko"),
        ("KIGALI", "Kigali"),
        ("Gisenyi", ""),
        ("London", ""),
        ("", ""),
    ] {
        let found = db.value(&format!("select (private.find_place('{heard}')).name")).await;
        assert_eq!(text(&found, ""), meant, "{heard}");
    }
    let names = async |arguments: Value| {
        let answer = run(&db, &session, "search_services", arguments).await;
        let found = done(&answer)["services"]
            .as_array()
            .unwrap()
            .iter()
            .map(|service| text(service, "/name"))
            .collect::<Vec<_>>();
        (found, answer)
    };
    assert_eq!(names(json!({"query": "house", "area": "kimirongo"})).await.0, ["Garden house", "Any house"]);
    assert_eq!(
        names(json!({"query": "inzu", "area": "Gasabo"})).await.0,
        ["Garden house", "Any house"],
        "a sector lies in its district"
    );
    assert_eq!(
        names(json!({"query": "apartement"})).await.0,
        ["Garden house", "Town flat"],
        "misspelt, and among the keywords"
    );
    assert_eq!(names(json!({"query": "house in kicukilo"})).await.0[0], "Family house", "a place among the words");
    assert_eq!(names(json!({"query": "housng"})).await.0.len(), 3, "a category that is misspelt");
    let (none, answer) = names(json!({"query": "flat", "area": "Kacyiru"})).await;
    assert_eq!((none.len(), &answer["result"]["elsewhere"][0]["name"]), (0, &json!("Town flat")));
    assert_eq!(answer["result"]["area"], "Kacyiru");
}

/// Measured with `cargo test -p ihuza-tests --test sql -- --ignored --nocapture tools::how_long`.
#[tokio::test]
#[ignore = "a measurement"]
async fn how_long_tools_take() {
    let db = Db::new().await;
    let session = session(&db, &phone()).await;
    db.run("insert into public.services (name, category, area, keywords) select 'House ' || md5(n::text), 'housing', 'Kimironko', 'inzu' from generate_series(1, 30000) n; analyze").await;
    for (name, arguments) in [
        ("session_get_context", json!({})),
        ("search_services", json!({"query": "inzu nziza", "area": "kimirongo"})),
        ("service_request_save", json!({"kind": "housing", "budget": 1})),
    ] {
        let mut took = Vec::new();
        for _ in 0..200 {
            let begun = Instant::now();
            done(&run(&db, &session, name, arguments.clone()).await);
            took.push(begun.elapsed().as_micros());
        }
        took.sort_unstable();
        println!("{name}: p50 {} us, p95 {} us", took[100], took[190]);
    }
}
