//! Database, PostgREST and gateway.

use ihuza_sim::control::Fault;
use ihuza_sim::world::{World, WorldConfig};
use serde_json::Value;

async fn world() -> World {
    let config = WorldConfig {
        functions: false,
        ..WorldConfig::default()
    };
    World::start(config).await.unwrap()
}

struct Answer {
    status: u16,
    body: Value,
}

async fn ask(world: &World, headers: &[(&str, &str)]) -> Answer {
    let url = format!(
        "{}/rest/v1/voice_calls?select=id",
        world.secret("SUPABASE_URL").unwrap()
    );
    let mut request = ihuza_sim::edge::client().unwrap().get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    Answer {
        status: answer.status().as_u16(),
        body: answer.json().await.unwrap_or(Value::Null),
    }
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
    assert_eq!(
        ask(&world, &[("apikey", &keys.secret)]).await.status,
        200,
        "secret key alone"
    );
    assert_eq!(
        ask(&world, &[("apikey", &keys.secret), ("authorization", &secret)])
            .await
            .status,
        200
    );
    assert_eq!(
        ask(&world, &[("apikey", &keys.service_role), ("authorization", &bearer)])
            .await
            .status,
        200
    );
    assert_eq!(
        ask(&world, &[("apikey", &keys.publishable), ("authorization", &secret)])
            .await
            .status,
        401
    );

    let browser = ask(&world, &[("apikey", &keys.secret), ("user-agent", "Mozilla/5.0")]).await;
    assert_eq!(browser.status, 401, "a secret key never comes from a browser");
    for anonymous in [
        vec![("apikey", keys.publishable.as_str())],
        vec![("apikey", &keys.anon), ("authorization", &anon)],
    ] {
        let answer = ask(&world, &anonymous).await;
        assert_eq!(answer.status, 401);
        assert_eq!(
            answer.body["code"], "42501",
            "anon reaches PostgREST and has no right to the table"
        );
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
    let row = world
        .db()
        .await
        .unwrap()
        .query_one("select count(*) from profiles", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn worlds_do_not_see_each_other() {
    let (one, two) = tokio::join!(world(), world());
    let insert = "insert into profiles (phone_number) values ('+250788123456')";
    one.db().await.unwrap().execute(insert, &[]).await.unwrap();
    let row = two
        .db()
        .await
        .unwrap()
        .query_one("select count(*) from profiles", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
}
