//! The chores as somebody types them: what is started is taken down again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ihuza_sim::world::{World, WorldConfig};

use crate::world::edge::mentions;

/// `cargo xtask` itself, which is built beside us.
fn xtask() -> Command {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("xtask");
    assert!(built.is_file(), "{} is not built: run `cargo build -p xtask`", built.display());
    let mut command = Command::new(built);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    command
}

/// A chore that runs. When the test fails, it is interrupted all the same: its world would stay for ever.
struct Chore(Child);

impl Chore {
    fn interrupt(&self) -> bool {
        Command::new("kill").args(["-INT", &self.0.id().to_string()]).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Chore {
    fn drop(&mut self) {
        let since = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) {
            self.interrupt();
            if since.elapsed() > Duration::from_secs(30) {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

#[tokio::test]
async fn ctrl_c_takes_all_of_the_local_world_down() {
    let mark = format!("ihuza-ctrl-c-{}", uuid::Uuid::new_v4());
    let ready = std::env::temp_dir().join(&mark);
    let demo = xtask()
        .args(["demo", "--ready-file"])
        .arg(&ready)
        .env("IHUZA_TEST_MARK", &mark)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut demo = Chore(demo);
    let since = Instant::now();
    while !ready.exists() {
        assert!(demo.0.try_wait().unwrap().is_none(), "it ended before it was up");
        assert!(since.elapsed() < Duration::from_secs(240), "it did not come up");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(mentions(&mark).len() > 3, "database, PostgREST, runtime: {:?}", mentions(&mark));
    assert!(demo.interrupt());
    let since = Instant::now();
    loop {
        let left = mentions(&mark);
        if demo.0.try_wait().unwrap().is_some() && left.is_empty() {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "still there: {left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its keys are of no use any more, and nobody else looks for them.
    std::fs::remove_file(ready).unwrap_or_default();
}

#[tokio::test]
async fn dead_letters_are_listed_masked_put_back_and_dropped() {
    let world = World::start(WorldConfig { functions: false, ..WorldConfig::default() }).await.unwrap();
    let insert = "select record_dead_letter(jsonb_build_object('queue', 'sms-inbound', 'message_id', $1::text, 'reason', 'retries_exhausted',
                    'correlation_id', $1::text, 'payload', '{\"v\": 1, \"body\": {\"from\": \"+250788123456\", \"text\": \"I look for a house\"}}'::jsonb
                    || jsonb_build_object('correlation_id', $1::text))) ->> 'id'";
    let mut ids = Vec::new();
    for name in ["first", "second"] {
        let rows = world.query(insert, &[&name]).await.unwrap();
        ids.push(rows[0].get::<_, String>(0));
    }
    let chore = |arguments: &[&str]| {
        let ran =
            xtask().arg("dead-letters").args(arguments).env("DATABASE_URL", world.database_url()).output().unwrap();
        let told = String::from_utf8(ran.stdout).unwrap();
        assert!(ran.status.success(), "{arguments:?}: {told}{}", String::from_utf8_lossy(&ran.stderr));
        told
    };
    let listed = chore(&["list"]);
    assert!(ids.iter().all(|id| listed.contains(id.as_str())) && listed.contains("replayable"), "{listed}");
    let (shown, whole) = (chore(&["show", &ids[0]]), chore(&["show", &ids[0], "--payload"]));
    for secret in ["788123456", "house"] {
        assert!(
            !listed.contains(secret) && !shown.contains(secret) && whole.contains(secret),
            "{secret}: {listed}{shown}{whole}"
        );
    }
    assert!(chore(&["replay", &ids[0], "--reason", "it is mended", "--by", "keza"]).contains("replayed"));
    assert!(chore(&["drop", &ids[1], "--reason", "a test call"]).contains("dropped"));
    assert_eq!(chore(&["list"]), "");
    let all = chore(&["list", "--all"]);
    assert!(all.contains("  replayed  ") && all.contains("  dropped  "), "{all}");
    let kept =
        world.query("select count(*) from jobs where queue = 'sms-inbound' and status = 'pending'", &[]).await.unwrap();
    assert_eq!(kept[0].get::<_, i64>(0), 1);

    // What is refused is told and fails.
    let refused = xtask()
        .args(["dead-letters", "replay", &ids[1], "--reason", "again"])
        .env("DATABASE_URL", world.database_url())
        .output()
        .unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("dead_letter_dropped"));
}

#[tokio::test]
async fn a_hand_over_is_listed_masked_taken_given_back_and_closed() {
    let world = World::start(WorldConfig { functions: false, ..WorldConfig::default() }).await.unwrap();
    let statements = [
        "insert into profiles (phone_number) values ('+250788123456'), ('+250788123457')",
        "insert into handoffs (client_id, profile_id, channel, department, urgent, reason)
         select c.id, p.id, 'sms', 'support', p.phone_number like '%7', 'Call +250788123499 about the rent'
           from clients c, profiles p where c.is_default order by p.phone_number",
    ];
    for statement in statements {
        world.execute(statement, &[]).await.unwrap();
    }
    let ran = |arguments: &[&str]| {
        let ran = xtask().arg("handoffs").args(arguments).env("DATABASE_URL", world.database_url()).output().unwrap();
        (ran.status.success(), String::from_utf8(ran.stdout).unwrap() + &String::from_utf8_lossy(&ran.stderr))
    };
    let chore = |arguments: &[&str]| {
        let (done, told) = ran(arguments);
        assert!(done, "{arguments:?}: {told}");
        told
    };
    let listed = chore(&["list"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{listed}");
    assert!(
        lines[0].starts_with("#2  ") && lines[0].contains("waiting  just now  urgent  sms  support  +25078****457"),
        "{listed}"
    );
    assert!(
        lines[1].starts_with("#1  ") && lines[1].ends_with("+25078****456  Call +25078****499 about the rent"),
        "{listed}"
    );
    assert!(!listed.contains("788123"), "{listed}");

    // By its id, in full only where that is asked for, and by one operator.
    let id = lines[1].split_whitespace().nth(1).unwrap();
    let taken = chore(&["take", id, "--by", "Aline"]);
    assert!(taken.contains("taken by Aline") && !taken.contains("788123456"), "{taken}");
    let (done, told) = ran(&["take", "1", "--by", "Eric"]);
    assert!(!done && told.contains("taken by Aline"), "{told}");
    assert!(chore(&["take", "2", "--by", "Eric", "--whole"]).contains("\"phone_number\": \"+250788123457\""));
    let (done, told) = ran(&["release", "1", "--by", "Eric"]);
    assert!(!done && told.contains("has taken no hand-over"), "{told}");
    assert!(chore(&["release", "1", "--by", "Aline"]).contains("  waiting  "));
    let closed = chore(&["close", "2", "--by", "Eric", "--outcome", "called back"]);
    assert!(closed.contains("closed by Eric: called back"), "{closed}");
    assert_eq!(chore(&["list"]).lines().count(), 2, "one, and how many");
    assert_eq!(chore(&["list", "--all"]).lines().count(), 3);
    assert_eq!(chore(&["list", "--client", "nobody"]).lines().count(), 1);
    let (done, told) = ran(&["close", "3", "--by", "Eric"]);
    assert!(!done && told.contains("there is no hand-over 3"), "{told}");
}

#[tokio::test]
async fn finance_gets_every_row_of_a_period_to_the_last_decimal() {
    let world = World::start(WorldConfig { functions: false, ..WorldConfig::default() }).await.unwrap();
    let statements = [
        "insert into clients (slug, brand) values ('other', 'Other')",
        // More than one portion; the last of them is a formula and a loss.
        "insert into agent_sms (client_id, phone_number, message_content, provider, provider_message_sid, status, provider_status, failure_reason, sent_at,
                                cost, cost_currency, revenue, revenue_currency)
         select id, '+250788123456', 'A \"house\", no. ' || n, 'twilio', 'SM' || lpad(n::text, 32, '0'), 'sent', 'sent',
                case when n = 6000 then '=HYPERLINK(\"http://x\",\"y\")' end, '2026-11-01 00:00Z'::timestamptz + n * interval '1 minute',
                0.007900, 'USD', case when n = 6000 then 0.001 else 0.0125 end, 'USD'
           from clients, generate_series(1, 6000) n where is_default",
        // The day after the last does not count; another client's does, unless one is asked for.
        "insert into agent_sms (client_id, phone_number, message_content, sent_at) select id, '+250788123456', 'Late', '2026-12-01 00:00Z' from clients where is_default",
        "insert into agent_sms (client_id, phone_number, message_content, sent_at) select id, '+250788123457', 'Theirs', '2026-11-30 23:59Z' from clients where slug = 'other'",
        "insert into agent_calls (client_id, deployment_id, phone_number, started_at, duration_seconds, cost, cost_currency)
         select c.id, d.id, '+250788123456', '2026-11-30 23:58Z', 61, 1.5, 'USD' from clients c join agent_deployments d on d.client_id = c.id where c.is_default and d.is_default",
    ];
    for statement in statements {
        world.execute(statement, &[]).await.unwrap();
    }
    let folder = std::env::temp_dir().join(format!("ihuza-export-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).unwrap();
    let export = |name: &str, more: &[&str]| {
        let file = folder.join(name);
        let ran = xtask()
            .args(["export", "--from", "2026-11-01", "--to", "2026-12-01", "--out"])
            .arg(&file)
            .args(more)
            .env("DATABASE_URL", world.database_url())
            .output()
            .unwrap();
        (ran.status.success(), String::from_utf8_lossy(&ran.stderr).into_owned(), file)
    };

    let (done, told, file) = export("all.csv", &[]);
    assert!(done, "{told}");
    assert!(
        told.contains("6002 rows") && told.contains("47.400000 USD") && told.contains("1 calls: cost 1.500000 USD"),
        "{told}"
    );
    let csv = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = csv.split("\r\n").collect();
    assert_eq!(lines.len(), 1 + 6002 + 1, "a header, the rows, and the end of the last line");
    assert!(
        lines[0].starts_with("kind,id,at,client,deployment,agent_type,direction,phone_number,status,"),
        "{}",
        lines[0]
    );
    assert!(lines[0].ends_with(",prospect_id,sequence_id") && !csv.contains("house"), "no text unless it is asked for");
    assert!(
        lines[1].contains(",2026-11-01T00:01:00.000000Z,") && lines[1].contains(",'+250788123456,"),
        "{}",
        lines[1]
    );
    let formula = lines.iter().find(|line| line.contains("HYPERLINK")).unwrap();
    assert!(
        formula.contains(",\"'=HYPERLINK(\"\"http://x\"\",\"\"y\"\")\",") && formula.contains(",-0.006900,"),
        "{formula}"
    );
    assert!(
        lines[6001].starts_with("call,") && lines[6002].starts_with("sms,"),
        "oldest first: {} {}",
        lines[6001],
        lines[6002]
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds people's numbers");

    let (done, told, file) = export("theirs.jsonl", &["--format", "jsonl", "--client", "other", "--texts"]);
    assert!(done, "{told}");
    let jsonl = std::fs::read_to_string(&file).unwrap();
    let rows: Vec<serde_json::Value> = jsonl.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (&rows[0]["message_content"], &rows[0]["segments"], &rows[0]["client"]),
        (&"Theirs".into(), &1.into(), &"other".into())
    );

    // What goes wrong leaves what was there before as it was, and nothing half done beside it.
    let before = std::fs::read(folder.join("theirs.jsonl")).unwrap();
    let (done, told, _) = export("theirs.jsonl", &["--client", "nobody"]);
    assert!(!done && told.contains("nobody"), "{told}");
    assert_eq!(std::fs::read(folder.join("theirs.jsonl")).unwrap(), before);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_person_gets_a_copy_of_what_is_held_of_them_and_of_nobody_else() {
    let world = World::start(WorldConfig { functions: false, ..WorldConfig::default() }).await.unwrap();
    for (phone, area) in [("+250788123456", "Kicukiro"), ("+250788999888", "Gisozi")] {
        let sql = format!(
            "with p as (insert into profiles (phone_number) values ('{phone}') returning id)
             insert into voice_memories (client_id, profile_id, key, value) select c.id, p.id, 'area', '{area}' from clients c, p where c.is_default"
        );
        world.execute(&sql, &[]).await.unwrap();
    }
    let file = std::env::temp_dir().join(format!("ihuza-person-{}.json", uuid::Uuid::new_v4()));
    let export = |number: &str| {
        let ran = xtask()
            .args(["export", "--person", number, "--out"])
            .arg(&file)
            .env("DATABASE_URL", world.database_url())
            .output()
            .unwrap();
        (ran.status.success(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    let (done, told) = export("+250788123456");
    assert!(done && told.contains("voice_memories: 1") && !told.contains("788123456"), "{told}");
    let held: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        (&held["profiles"][0]["phone_number"], &held["voice_memories"][0]["value"]),
        (&"+250788123456".into(), &"Kicukiro".into())
    );
    assert!(!held.to_string().contains("Gisozi") && !held.to_string().contains("788999888"), "{held}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    std::fs::remove_file(&file).unwrap();
    let (done, told) = export("+250788000111");
    assert!(!done && told.contains("nobody is known"), "{told}");
    assert!(!file.exists());
}

#[tokio::test]
async fn an_operator_is_told_how_it_goes() {
    let world = World::start(WorldConfig { functions: false, ..WorldConfig::default() }).await.unwrap();
    world
        .execute(
            "insert into agent_sms (client_id, phone_number, message_content, provider, provider_message_sid, status, failure_reason)
             select id, '+250788123456', 'A house', 'twilio', 'SM1', 'failed', 'no answer from +250788123456' from clients where is_default",
            &[],
        )
        .await
        .unwrap();
    let ran = xtask().arg("stats").env("DATABASE_URL", world.database_url()).output().unwrap();
    let told = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success(), "{told}{}", String::from_utf8_lossy(&ran.stderr));
    for expected in [
        "active sessions",
        "no answer from +25078****456",
        "sums of SMS not folded",
        "not kept here: create extension pg_stat_statements",
    ] {
        assert!(told.contains(expected), "{expected:?} is not in:\n{told}");
    }
    assert!(!told.contains("788123456") && !told.contains("A house"), "{told}");
    assert!(!told.contains("could not be answered"), "{told}");
}
