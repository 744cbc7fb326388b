//! Whoever keeps watch is told of alerts by a webhook, once each.

use std::sync::{Arc, Mutex};

use ihuza_core::signature;
use ihuza_sim::http::{Answer, Reply, Request, Server};
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::{World, WorldConfig};
use serde_json::{Value, json};

use crate::stage::SOON;

const SECRET: &str = "a-secret-of-the-pager";

/// What was posted to the pager, and what it answers.
#[derive(Default)]
struct Pager {
    posts: Mutex<Vec<Request>>,
    status: Mutex<u16>,
}

impl Pager {
    async fn start(self: &Arc<Self>) -> Server {
        let pager = self.clone();
        Server::start(0, move |request| {
            let pager = pager.clone();
            async move {
                let status = *pager.status.lock().unwrap();
                pager.posts.lock().unwrap().push(request);
                Reply::Whole(Answer::text(status, "text/plain", ""))
            }
        })
        .await
        .unwrap()
    }

    fn answers(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    /// Bodies of the posts, each with a good signature and its own id in the header.
    fn notices(&self) -> Vec<Value> {
        let posts = self.posts.lock().unwrap();
        let read = |request: &Request| {
            let (proof, at) = (request.header("x-signature"), request.header("x-timestamp"));
            assert!(
                signature::timestamped(proof, at, &request.body, &[SECRET], chrono::Utc::now()),
                "{proof:?} {at:?}"
            );
            let notice: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(request.header("idempotency-key"), notice["id"].as_str());
            notice
        };
        posts.iter().map(read).collect()
    }
}

#[tokio::test]
async fn an_alert_is_told_once_and_again_where_the_webhook_did_not_take_it() {
    let pager = Arc::new(Pager::default());
    let server = pager.start().await;
    let config = WorldConfig::default()
        .var("ALERT_WEBHOOK_URL", format!("{}/alerts", server.url()))
        .var("ALERT_WEBHOOK_SECRET", SECRET);
    let world = World::start(config).await.unwrap();
    let raise = "select record_dead_letter('{\"queue\": \"sms-inbound\", \"message_id\": \"m-1\", \"reason\": \"retries_exhausted\",
                   \"correlation_id\": \"for +250788123456\", \"payload\": {\"text\": \"I look for a house\"}}')";
    world.query(raise, &[]).await.unwrap();

    // It is down, which holds up nothing else: what is due goes out in the same cron.
    pager.answers(500);
    let phone = "+250788200001";
    let seed = CallSeed::new(phone);
    let call = world.seed_call(&seed).await.unwrap();
    world
        .execute(
            "update voice_calls set ended_at = now() - interval '5 minutes', started_at = now() - interval '6 minutes',
                     answered_at = now() - interval '6 minutes', status = 'completed'",
            &[],
        )
        .await
        .unwrap();
    world.cron().await.unwrap();
    let told = format!("select count(*) = 1 from call_notifications where call_id = '{}' and status = 'done'", call.id);
    world.wait_for_sql(&told, SOON).await.unwrap();
    let tried = "select notice_attempts = 1 and notified_at is null and notice_at > now() from alerts where kind = 'dead_letter'";
    world.wait_for_sql(tried, SOON).await.unwrap();
    assert_eq!(pager.notices().len(), 1);

    // It is up again.
    pager.answers(204);
    world.execute("update alerts set notice_at = now() where notice_at is not null", &[]).await.unwrap();
    world.cron().await.unwrap();
    world
        .wait_for_sql("select bool_and(notified_at is not null and notice_at is null) from alerts", SOON)
        .await
        .unwrap();
    let notices = pager.notices();
    assert_eq!(notices.len(), 2);
    assert_eq!(notices[0], notices[1], "the same, under the same id");
    assert_eq!((&notices[0]["kind"], &notices[0]["severity"]), (&json!("dead_letter"), &json!("critical")));
    let said = notices[0].to_string();
    assert!(!said.contains("788123456") && !said.contains("house"), "{said}");

    // Nothing new: nothing is told.
    world.query(raise, &[]).await.unwrap();
    world.cron().await.unwrap();
    world.cron().await.unwrap();
    assert_eq!(pager.notices().len(), 2);
}
