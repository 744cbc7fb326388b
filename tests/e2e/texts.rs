//! In whose name a message goes out, what it promises, and over which channels an answer goes.

use ihuza_sim::mtn::Inbound;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use serde_json::json;
use uuid::Uuid;

use crate::stage::Stage;

async fn stage() -> Stage {
    Stage::shared("conversations", WorldConfig::default).await
}

/// Without a number that can receive.
fn one_way() -> WorldConfig {
    WorldConfig::default().var("MTN_SMS_SERVICE_CODE", "")
}

/// A client of their own, reached at `code`.
async fn client(stage: &Stage, brand: &str, sender: &str, code: Option<&str>) -> Uuid {
    let id = Uuid::new_v4();
    stage
        .execute(
            "insert into clients (id, slug, brand, sms_sender_id, sms_service_code) values ($1, $2, $3, $4, $5)",
            &[&id, &format!("c{}", id.simple()), &brand, &sender, &code],
        )
        .await
        .unwrap();
    if let Some(code) = code {
        stage
            .execute("insert into client_numbers (client_id, channel, address) values ($1, 'sms', $2)", &[&id, &code])
            .await
            .unwrap();
    }
    id
}

#[tokio::test]
async fn an_answer_is_mirrored_to_whatsapp_when_the_person_or_the_client_wants_it() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.told_and_done(&CallSeed::new(&phone).on_whatsapp_now()).await;
    stage.says(&phone, "Change budget to 250k").await;
    assert_eq!(stage.whatsapp().messages_to(&phone).len(), 1, "off is the default");

    stage.prefers(&phone, &json!({"mirror_replies": true})).await;
    let answer = stage.says(&phone, "Change budget to 200k").await;
    stage
        .delivered(
            &phone,
            "sms delivered 1, sms delivered 1, sms delivered 1, whatsapp delivered 1, whatsapp delivered 1",
        )
        .await;
    let mirrored = stage.whatsapp().messages_to(&phone).pop().unwrap();
    assert!(answer.contains("200k") && mirrored.shown.contains("200k"), "{answer} / {}", mirrored.shown);

    let client = client(&stage, "Mirror", "Mirror", Some("8090")).await;
    stage.execute("update clients set mirror_replies = true where id = $1", &[&client]).await.unwrap();
    let phone = stage.stranger();
    stage.seed_call(&CallSeed::new(&phone).on_whatsapp_now()).await.unwrap();
    stage.mtn().deliver(&Inbound::new(&phone, "I look for a house in Remera").to("8090")).await.unwrap();
    stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1").await;
}

#[tokio::test]
async fn the_number_written_to_and_the_client_of_the_call_say_in_whose_name_we_speak() {
    let stage = stage().await;
    let id = client(&stage, "Inzu Homes", "InzuHomes", Some("8091")).await;
    let phone = stage.stranger();
    let call = stage.seed_call(&CallSeed::new(&phone).on_whatsapp_now()).await.unwrap();
    stage.execute("update voice_calls set client_id = $1 where id = $2", &[&id, &call.id]).await.unwrap();
    stage.ask(&call).await;
    stage.delivered(&phone, "sms delivered 1, whatsapp delivered 1").await;
    let sms = stage.mtn().messages_to(&phone).remove(0);
    assert_eq!(sms.sender, "InzuHomes");
    assert!(sms.text.starts_with("Inzu Homes summary:") && sms.text.contains("8091"), "{}", sms.text);
    assert!(stage.whatsapp().messages_to(&phone)[0].shown.contains("Inzu Homes Call Summary"));

    stage.mtn().deliver(&Inbound::new(&phone, "HELP").to("8091")).await.unwrap();
    let help = stage.sms_to(&phone, 2).await;
    assert!(help.starts_with("Inzu Homes: "), "{help}");
    assert_eq!(stage.mtn().messages_to(&phone)[1].sender, "InzuHomes");
    // The same person at the default number is in another conversation, in another name.
    let other = stage.says(&phone, "HELP").await;
    assert!(other.starts_with("EasyMO: "), "{other}");
    let sessions = format!(
        "select count(distinct s.client_id) as clients, count(*) as sessions from omnichannel_sessions s join profiles p on p.id = s.profile_id
          where p.phone_number = '{phone}'"
    );
    assert_eq!(serde_json::Value::Object(stage.row(&sessions).await), json!({"clients": 2, "sessions": 2}));
}

#[tokio::test]
async fn a_reply_is_promised_only_where_one_can_arrive() {
    let stage = Stage::shared("one-way", one_way).await;
    let told = async |seed: &CallSeed, client: Option<Uuid>| {
        let call = stage.seed_call(seed).await.unwrap();
        if let Some(client) = client {
            stage.execute("update voice_calls set client_id = $1 where id = $2", &[&client, &call.id]).await.unwrap();
        }
        stage.ask(&call).await;
        stage.sms_to(&seed.phone, 1).await
    };
    let name = told(&CallSeed::new(&stage.stranger()), None).await;
    assert!(!name.to_lowercase().contains("reply"), "EasyMO receives nothing: {name}");
    let number = client(&stage, "EasyMO", "8080", None).await;
    let number = told(&CallSeed::new(&stage.stranger()), Some(number)).await;
    assert!(number.contains("Reply to continue"), "{number}");
    let code = client(&stage, "EasyMO", "EasyMO", Some("8092")).await;
    let code = told(&CallSeed::new(&stage.stranger()), Some(code)).await;
    assert!(code.contains("Reply by SMS to 8092"), "{code}");

    let url = format!("{}/call-summary/health", stage.edge().unwrap().url("call-summary").unwrap());
    let health: serde_json::Value =
        ihuza_sim::edge::client().unwrap().get(url).send().await.unwrap().json().await.unwrap();
    assert!(health["warnings"][0].as_str().unwrap_or_default().contains("cannot receive replies"), "{health}");
}

#[tokio::test]
async fn the_four_languages_reach_both_channels() {
    let stage = stage().await;
    let said = [
        ("fr", "Bonjour, je cherche une maison à louer à Kimironko, deux chambres."),
        ("rw", "Muraho, ndashaka inzu yo gukodesha i Kimironko, ibyumba bibiri."),
        ("sw", "Habari, natafuta nyumba ya kupanga Kimironko, vyumba viwili."),
    ];
    for (locale, text) in said {
        let phone = stage.stranger();
        let seed = CallSeed::new(&phone).on_whatsapp_now().locale(locale).transcript(&[("user", text)]);
        stage.told_and_done(&seed).await;
        let sms = stage.mtn().messages_to(&phone).remove(0);
        assert!(sms.text.contains("Kimironko"), "{locale}: {}", sms.text);
        assert!(!sms.text.contains("summary:"), "{locale} is not English: {}", sms.text);
        let facts = stage
            .row(&format!(
                "select encoding, segments from message_delivery_log where recipient = '{phone}' and channel = 'sms'"
            ))
            .await;
        assert_eq!(facts["encoding"], "gsm7", "{locale}: {}", sms.text);
        assert!(facts["segments"].as_u64().unwrap() <= 2, "{locale}");
        let whatsapp = stage.whatsapp().messages_to(&phone).remove(0);
        assert!(
            whatsapp.shown.starts_with("📞") && whatsapp.shown.contains("Kimironko"),
            "{locale}: {}",
            whatsapp.shown
        );
    }
}
