//! FORGET ME, ERASE ALL and MY DATA, as people write them.

use ihuza_sim::world::WorldConfig;

use crate::stage::Stage;

/// The sweep erases; it is nobody else's.
async fn alone() -> Stage {
    Stage::alone("conversations", WorldConfig::default).await
}

async fn people(stage: &Stage, phone: &str) -> u64 {
    stage.count(&format!("profiles where phone_number = '{phone}'")).await
}

/// Everything that is sent to the person has its report.
async fn reported(stage: &Stage, phone: &str) {
    stage
        .until(&format!(
            "select count(*) > 0 and bool_and(l.status in ('delivered', 'read')) from message_delivery_log l join profiles p on p.id = l.profile_id
              where p.phone_number = '{phone}' and l.direction = 'outbound'"
        ))
        .await;
}

#[tokio::test]
async fn whoever_asks_and_confirms_is_forgotten_and_comes_back_as_a_stranger() {
    let stage = alone().await;
    let (phone, other) = (stage.stranger(), stage.stranger());
    stage.says(&other, "I prefer Kicukiro").await;
    stage.says(&phone, "Nyamirambo is where I live").await;
    let held = stage.says(&phone, "MY DATA").await;
    assert!(held.contains("We hold 3 messages, 0 calls and 0 notes"), "{held}");
    let copy = format!(
        "privacy_requests r join profiles p on p.id = r.profile_id where p.phone_number = '{phone}' and r.kind = 'export' and r.state = 'asked'"
    );
    assert_eq!(stage.count(&copy).await, 1);
    let asked = stage.says(&phone, "Please forget me").await;
    assert!(asked.contains("send ERASE ALL within 24 hours"), "{asked}");
    stage.cron().await.unwrap();
    assert_eq!(people(&stage, &phone).await, 1, "asked is not confirmed");
    let done = stage.says(&phone, "Erase all").await;
    assert!(done.contains("is being deleted now"), "{done}");
    reported(&stage, &phone).await;
    stage.until(&format!("select count(*) = 1 from privacy_requests r join profiles p on p.id = r.profile_id where p.phone_number = '{phone}' and r.state = 'confirmed'")).await;
    // A turn that is being recorded keeps its lease; the sweep then waits two minutes.
    stage.until(&format!("select count(*) = 0 from conversation_turns t join profiles p on p.id = t.profile_id where p.phone_number = '{phone}' and t.status = 'open'")).await;
    stage.cron().await.unwrap();
    assert_eq!(people(&stage, &phone).await, 0);
    let sql = format!(
        "message_delivery_log where recipient = '{phone}' or sender = '{phone}' or content like '%Nyamirambo%'"
    );
    assert_eq!(stage.count(&sql).await, 0);
    assert_eq!(people(&stage, &other).await, 1, "nobody else");

    // The same words, of a stranger: an agent answers.
    let greeted = stage.says(&phone, "Erase all").await;
    assert!(!greeted.contains("deleted"), "{greeted}");
    let asked = stage.openai().control().requests().last().map(|request| request.body.clone()).unwrap_or_default();
    assert!(asked.contains("Erase all") && !asked.contains("Nyamirambo"), "{asked}");
    for line in stage.logs().unwrap() {
        assert!(!line.text.contains("Nyamirambo") && !line.text.contains(phone.as_str()), "{}", line.text);
    }
}

#[tokio::test]
async fn each_language_asks_and_answers_in_its_own_on_both_channels() {
    let stage = Stage::shared("conversations", WorldConfig::default).await;
    for (forget, told, data, held) in [
        ("Oubliez-moi, merci", "envoyez EFFACER TOUT", "Mes données", "Nous avons de vous"),
        ("Siba amakuru yanjye", "ohereza SIBA BYOSE", "Amakuru yanjye", "Tukubitseho ubutumwa"),
        ("Futa data yangu tafadhali", "tuma FUTA YOTE", "Data yangu", "Tuna ujumbe"),
    ] {
        let phone = stage.stranger();
        let answer = stage.says(&phone, forget).await;
        assert!(answer.contains(told), "{answer}");
        let answer = stage.writes(&phone, data).await;
        assert!(answer.contains(held), "{answer}");
        assert_eq!(people(&stage, &phone).await, 1);
    }
}
