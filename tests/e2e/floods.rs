//! Who writes too much: counted at the edge before anything is queued, kept, and not answered.

use std::time::{SystemTime, UNIX_EPOCH};

use ihuza_sim::world::WorldConfig;
use serde_json::json;

use crate::stage::Stage;

const SENDER_LIMIT: u32 = 3;
const PREFIX_LIMIT: u32 = 6;

fn limited() -> WorldConfig {
    let limits = [("SENDER_LIMIT", Some(SENDER_LIMIT)), ("PREFIX_LIMIT", Some(PREFIX_LIMIT))];
    WorldConfig { edge_limits: limits.map(|(name, limit)| (name.to_owned(), limit)).into(), ..WorldConfig::default() }
}

/// Minutes by the clock, as the counters have them: a flood that goes on into the next is answered a little more.
struct Minutes(u64);

impl Minutes {
    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60
    }

    fn begin() -> Self {
        Self(Self::now())
    }

    /// The most that a counter with this limit has let in since.
    fn most(&self, limit: u32) -> u64 {
        (Self::now() - self.0 + 1) * u64::from(limit)
    }
}

/// Waits until all that these people wrote is dealt with; of how many messages the answer was held back.
async fn held_back(stage: &Stage, people: &str, messages: u64) -> u64 {
    let written = format!(
        "conversation_messages m join profiles p on p.id = m.profile_id
          where m.direction = 'inbound' and m.handled_at is not null and p.id in (select profile_id from profile_identities where value like '{people}')"
    );
    stage.until(&format!("select count(*) = {messages} from {written}")).await;
    stage.count(&format!("{written} and m.handled_as = 'rate_limited'")).await
}

#[tokio::test]
async fn one_number_that_floods_is_kept_but_not_answered_and_its_neighbour_is() {
    let stage = Stage::alone("floods", limited).await;
    let (flooder, neighbour) = ("+447911000001", "+447911000002");
    let asked = stage.openai().questions().len();
    let minutes = Minutes::begin();
    for n in 0..20 {
        assert_eq!(stage.sms_from(flooder, &format!("message {n}")).await.unwrap().status, Some(200));
    }
    let most = minutes.most(SENDER_LIMIT);
    let held = held_back(&stage, flooder, 20).await;
    assert!(held < 20 && held >= 20_u64.saturating_sub(most), "{held} of 20 held back, {most} may have come through");
    let asked = stage.openai().questions().len() - asked;
    assert!(asked > 0 && asked as u64 <= 20 - held, "{asked} questions for {} messages", 20 - held);
    // Who floods is counted alone: as many again as PREFIX_LIMIT came from this prefix, and a neighbour is answered.
    assert!(stage.says(neighbour, "I look for a house in Remera").await.contains("Remera"));
    let other = stage.stranger();
    assert!(stage.says(&other, "I look for a house in Remera").await.contains("Remera"));
    let told = "select bool_or(details ->> 'of' = 'sender' and details ->> 'channel' = 'sms') from alerts where kind = 'inbound_flood'";
    assert_eq!(stage.value(told).await, json!(true));
    // Whoever gets too much can always end it.
    stage.sms_from(flooder, "STOP").await.unwrap();
    stage.until(&format!("select not allows_sms from profiles where phone_number = '{flooder}'")).await;
}

#[tokio::test]
async fn a_flood_of_many_numbers_that_begin_alike_gets_few_answers_and_others_get_theirs() {
    let stage = Stage::alone("floods", limited).await;
    let numbers: Vec<String> = (0..20).map(|n| format!("+88877700{n:04}")).collect();
    let minutes = Minutes::begin();
    for number in &numbers {
        assert_eq!(stage.sms_from(number, "Hello").await.unwrap().status, Some(200));
    }
    stage.sms_from(&numbers[19], "STOP").await.unwrap();
    let other = stage.stranger();
    assert!(stage.says(&other, "I look for a house in Remera").await.contains("Remera"));
    let most = minutes.most(PREFIX_LIMIT);
    let held = held_back(&stage, "+888777%", 21).await;
    assert!(held < 20 && held >= 21_u64.saturating_sub(most), "{held} of 21 held back, {most} may have come through");
    stage.until(&format!("select not allows_sms from profiles where phone_number = '{}'", numbers[19])).await;
    let paid: usize = numbers.iter().map(|number| stage.mtn().messages_to(number).len()).sum();
    assert!(paid as u64 <= 21 - held, "{paid} SMS for {} messages", 21 - held);
    // Neighbours at home are our other customers, however many write at once.
    let home: Vec<String> = (0..10).map(|_| stage.stranger()).collect();
    for number in &home {
        stage.sms_from(number, "I look for a house in Remera").await.unwrap();
    }
    for number in &home {
        assert!(stage.sms_to(number, 1).await.contains("Remera"));
    }
}

#[tokio::test]
async fn a_flood_on_whatsapp_is_kept_but_not_answered_by_number_and_by_user_id() {
    let stage = Stage::alone("floods", limited).await;
    for person in [stage.stranger(), "RW.7704123456789012".to_owned()] {
        let minutes = Minutes::begin();
        let messages =
            (0..20).map(|n| stage.whatsapp().inbound(&person, "text", json!({"body": format!("message {n}")})));
        let posted = stage.whatsapp().deliver_all(messages.collect()).await.unwrap();
        assert_eq!(posted.status, Some(200), "{}", posted.answer);
        let most = minutes.most(SENDER_LIMIT);
        let held = held_back(&stage, &person, 20).await;
        assert!(
            held < 20 && held >= 20_u64.saturating_sub(most),
            "{held} of 20 held back, {most} may have come through"
        );
        assert!(!stage.whatsapp_to(&person, 1).await.is_empty());
    }
}

#[tokio::test]
async fn of_a_flood_in_one_body_what_is_behind_the_counted_messages_is_held_back_as_well() {
    let stage = Stage::alone("floods", limited).await;
    // A hundred messages of a body are counted.
    let (flooder, neighbour) = (stage.stranger(), stage.stranger());
    let minutes = Minutes::begin();
    let text = |person: &str, n: u32| stage.whatsapp().inbound(person, "text", json!({"body": format!("message {n}")}));
    let messages = (0..150).map(|n| text(&flooder, n)).chain([text(&neighbour, 1)]);
    let posted = stage.whatsapp().deliver_all(messages.collect()).await.unwrap();
    assert_eq!(posted.status, Some(200), "{}", posted.answer);
    let most = minutes.most(SENDER_LIMIT);
    let held = held_back(&stage, &flooder, 150).await;
    assert!(held < 150 && held >= 150 - most, "{held} of 150 held back, {most} may have come through");
    assert!(!stage.whatsapp_to(&neighbour, 1).await.is_empty());
}

fn uncounted() -> WorldConfig {
    WorldConfig { edge_limits: [("SENDER_LIMIT".to_owned(), None)].into(), ..WorldConfig::default() }
}

#[tokio::test]
async fn where_nobody_counts_everybody_is_let_in_and_it_is_said_once() {
    let stage = Stage::alone("uncounted", uncounted).await;
    let person = stage.stranger();
    for n in 0..40 {
        assert_eq!(stage.sms_from(&person, &format!("message {n}")).await.unwrap().status, Some(200));
    }
    assert_eq!(held_back(&stage, &person, 40).await, 0);
    let logs = stage.logs().unwrap();
    let said: Vec<_> = logs.iter().filter(|line| line.event().as_deref() == Some("SENDER_NOT_COUNTED")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
}
