//! Database, PostgREST and gateway.

use ihuza_sim::control::Fault;
use ihuza_sim::migrate;
use ihuza_sim::postgres::Data;
use ihuza_sim::world::{World, WorldConfig};
use serde_json::Value;

async fn world() -> World {
    let config = WorldConfig { functions: false, ..WorldConfig::default() };
    World::start(config).await.unwrap()
}

struct Answer {
    status: u16,
    body: Value,
}

async fn ask(world: &World, headers: &[(&str, &str)]) -> Answer {
    let url = format!("{}/rest/v1/voice_calls?select=id", world.secret("SUPABASE_URL").unwrap());
    let mut request = ihuza_sim::edge::client().unwrap().get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    Answer { status: answer.status().as_u16(), body: answer.json().await.unwrap_or(Value::Null) }
}

#[tokio::test]
async fn the_gateway_knows_both_kinds_of_keys() {
    let world = world().await;
    let keys = world.keys().clone();
    let bearer = format!("Bearer {}", keys.service_role);
    let anon = format!("Bearer {}", keys.anon);
    let secret = format!("Bearer {}", keys.secret);

    assert_eq!(ask(&world, &[]).await.status, 401, "no key");
    assert_eq!(ask(&world, &[("apikey", "nonsense")]).await.status, 401, "unknown key");
    assert_eq!(ask(&world, &[("apikey", &keys.secret)]).await.status, 200, "secret key alone");
    assert_eq!(ask(&world, &[("apikey", &keys.secret), ("authorization", &secret)]).await.status, 200);
    assert_eq!(ask(&world, &[("apikey", &keys.service_role), ("authorization", &bearer)]).await.status, 200);
    assert_eq!(ask(&world, &[("apikey", &keys.publishable), ("authorization", &secret)]).await.status, 401);

    let browser = ask(&world, &[("apikey", &keys.secret), ("user-agent", "Mozilla/5.0")]).await;
    assert_eq!(browser.status, 401, "a secret key never comes from a browser");
    for anonymous in
        [vec![("apikey", keys.publishable.as_str())], vec![("apikey", &keys.anon), ("authorization", &anon)]]
    {
        let answer = ask(&world, &anonymous).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.body["code"], "42501", "anon reaches PostgREST and has no right to the table");
    }
    let raw = ask(&world, &[("apikey", &keys.service_role)]).await;
    assert_eq!(raw.body["code"], "42501", "a legacy key without Bearer is anon");
    assert_eq!(world.gateway().calls("/voice_calls"), 10);
    let recorded = world.gateway().requests();
    assert_eq!(recorded[2].headers["apikey"], "***");
}

#[tokio::test]
async fn the_gateway_fails_as_ordered() {
    let world = world().await;
    let key = world.keys().secret.clone();
    let ask = async || ask(&world, &[("apikey", &key)]).await;

    world.gateway().fail_with(Fault::Pgrst002).on("voice_calls").times(2);
    for _ in 0..2 {
        let answer = ask().await;
        assert_eq!((answer.status, answer.body["code"].as_str()), (503, Some("PGRST002")));
    }
    assert_eq!(ask().await.status, 200, "two times, then well again");
    world.gateway().fail_with(Fault::Status503).on("elsewhere");
    assert_eq!(ask().await.status, 200, "another path");
    world.gateway().clear_faults();
    world.gateway().fail_with(Fault::Truncated);
    assert_eq!(ask().await.body, Value::Null, "half an answer");
    world.gateway().fail_with(Fault::Status504);
    assert_eq!(ask().await.status, 504);
}

#[tokio::test]
async fn an_answer_lost_after_commit_leaves_the_row() {
    let world = world().await;
    world.gateway().fail_with(Fault::CutAfter);
    let url = format!("{}/rest/v1/profiles", world.secret("SUPABASE_URL").unwrap());
    let outcome = ihuza_sim::edge::client()
        .unwrap()
        .post(url)
        .header("apikey", &world.keys().secret)
        .json(&serde_json::json!({"phone_number": "+250788123456"}))
        .send()
        .await;
    assert!(outcome.is_err(), "the answer was cut");
    let row = world.db().await.unwrap().query_one("select count(*) from profiles", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn worlds_do_not_see_each_other() {
    let (one, two) = tokio::join!(world(), world());
    let insert = "insert into profiles (phone_number) values ('+250788123456')";
    one.db().await.unwrap().execute(insert, &[]).await.unwrap();
    let row = two.db().await.unwrap().query_one("select count(*) from profiles", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn a_kept_database_is_found_again() {
    let folder = std::env::temp_dir().join(format!("ihuza-kept-{}", std::process::id()));
    let config =
        || WorldConfig { functions: false, data: Data::Keep(folder.join("postgres")), ..WorldConfig::default() };
    let insert = "insert into profiles (phone_number) values ('+250788123456')";
    let first = World::start(config()).await.unwrap();
    first.execute(insert, &[]).await.unwrap();
    drop(first);
    let second = World::start(config()).await.unwrap();
    let row = second.query("select count(*) from profiles", &[]).await.unwrap();
    assert_eq!(row[0].get::<_, i64>(0), 1);
    drop(second);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn migrations_are_applied_once_and_a_dry_run_writes_nothing() {
    let world = world().await;
    let mut client = world.db().await.unwrap();
    let mut migrations = migrate::read(&WorldConfig::default().root.join("migrations")).unwrap();
    let again = migrate::apply(&mut client, &migrations, false).await.unwrap();
    assert_eq!((again.applied.len(), again.skipped.len()), (0, migrations.len()));

    let mut extra = migrations[0].clone();
    extra.version = "29990101000000".to_owned();
    extra.sql = "create table extra (id int);\nselect 1/0;".to_owned();
    migrations.push(extra);
    let dry = migrate::apply(&mut client, &migrations, true).await.unwrap();
    assert_eq!(dry.applied, ["29990101000000"]);
    let failure = migrate::apply(&mut client, &migrations, false).await.unwrap_err().to_string();
    assert!(failure.contains(":2: division by zero (22012)"), "{failure}");
    let row = client.query_one("select to_regclass('extra') is null", &[]).await.unwrap();
    assert!(row.get::<_, bool>(0), "nothing of a failed file is kept");

    migrations.pop();
    migrations[0].sql.push_str(";select 2");
    let edited = migrate::apply(&mut client, &migrations, false).await.unwrap();
    assert_eq!(edited.changed, [migrations[0].version.clone()]);
    let missing = migrate::apply(&mut client, &migrations[1..], false).await.unwrap();
    assert_eq!(missing.unknown, [migrations[0].version.clone()]);
}
