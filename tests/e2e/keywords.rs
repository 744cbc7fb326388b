//! STOP, START and HELP come before anything else, in four languages.

use ihuza_sim::control::Fault;
use ihuza_sim::verbs::CallSeed;
use ihuza_sim::world::WorldConfig;
use std::time::Duration;

use crate::stage::{SOON, Stage};

async fn stage() -> Stage {
    Stage::shared("conversations", WorldConfig::default).await
}

/// A language's words, and a piece of each of its answers.
struct Words {
    stop: &'static str,
    stopped: &'static str,
    start: &'static str,
    started: &'static str,
    help: &'static str,
    helped: &'static str,
}

const LANGUAGES: [Words; 4] = [
    Words {
        stop: "STOP",
        stopped: "no more SMS",
        start: "START",
        started: "SMS again",
        help: "help?",
        helped: "answer your questions",
    },
    Words {
        stop: "Arrêt, merci",
        stopped: "ne recevrez plus",
        start: "REPRENDRE",
        started: "de nouveau nos SMS",
        help: "AIDE",
        helped: "vos questions",
    },
    Words {
        stop: "Hagarika, murakoze",
        stopped: "Ntabwo uzongera",
        start: "TANGIRA",
        started: "Uzongera kwakira",
        help: "Ubufasha",
        helped: "ibibazo byawe",
    },
    Words {
        stop: "Tafadhali sitisha",
        stopped: "Hutapokea SMS",
        start: "ANZA",
        started: "Utapokea SMS",
        help: "MSAADA",
        helped: "maswali yako",
    },
];

/// Waits until so many messages of the person were put aside because they had opted out.
async fn put_aside(stage: &Stage, phone: &str, count: u32) {
    stage
        .until(&format!(
            "select count(*) = {count} from conversation_messages m join profiles p on p.id = m.profile_id
              where p.phone_number = '{phone}' and m.handled_as = 'opted_out'"
        ))
        .await;
}

async fn allows_sms(stage: &Stage, phone: &str) -> bool {
    stage.value(&format!("select allows_sms from profiles where phone_number = '{phone}'")).await == true
}

#[tokio::test]
async fn stop_start_and_help_are_obeyed_and_confirmed_in_the_language_they_are_written_in() {
    let stage = stage().await;
    for words in LANGUAGES {
        let phone = stage.stranger();
        let helped = stage.says(&phone, words.help).await;
        assert!(helped.contains(words.helped), "{}: {helped}", words.help);
        let stopped = stage.says(&phone, words.stop).await;
        assert!(stopped.contains(words.stopped) && stopped.contains("START"), "{}: {stopped}", words.stop);
        assert!(!allows_sms(&stage, &phone).await);
        let started = stage.says(&phone, words.start).await;
        assert!(started.contains(words.started) && started.contains("STOP"), "{}: {started}", words.start);
        assert!(allows_sms(&stage, &phone).await);
        let turns =
            format!("conversation_turns t join profiles p on p.id = t.profile_id where p.phone_number = '{phone}'");
        assert_eq!(stage.count(&format!("{turns} and t.kind = 'keyword'")).await, 3);
        assert_eq!(stage.count(&turns).await, 3, "the model is not asked");
    }
}

#[tokio::test]
async fn after_stop_there_is_silence_until_start() {
    let stage = stage().await;
    let phone = stage.stranger();
    stage.says(&phone, "STOP").await;
    stage.sms_from(&phone, "stop").await.unwrap();
    put_aside(&stage, &phone, 1).await;
    stage.sms_from(&phone, "Is the house still free?").await.unwrap();
    put_aside(&stage, &phone, 2).await;
    let told = stage.told_and_done(&CallSeed::new(&phone)).await;
    stage.until(&format!(
        "select status = 'suppressed' and suppress_reason = 'opted_out' and attempts = 0 from message_delivery_log where call_id = '{}'",
        told.call.id
    )).await;
    assert_eq!(
        stage.mtn().messages_to(&phone).len(),
        1,
        "the confirmation, and nothing else:\n{}",
        stage.outbox(&phone)
    );
    stage.says(&phone, "START").await;
    let answer = stage.says(&phone, "Is the house still free?").await;
    assert!(!answer.is_empty());
    assert_eq!(stage.mtn().messages_to(&phone).len(), 3, "{}", stage.outbox(&phone));
}

#[tokio::test]
async fn stop_is_confirmed_while_an_earlier_message_is_still_being_answered() {
    let stage = Stage::alone("conversations", WorldConfig::default).await;
    let phone = stage.stranger();
    stage.openai().fail_with(Fault::Slow).on("text").delay(Duration::from_millis(6000)).always();
    let asked = stage.openai().questions().len();
    // Both in one batch of the queue, as two consumers would have them: once the model is asked for somebody else the
    // queue is taken, and the rest pile up.
    let other = stage.stranger();
    stage.sms_from(&other, "Hello, I look for a house").await.unwrap();
    let look = async || Ok((stage.openai().questions().len() > asked).then_some(()));
    stage.wait_for("a question to the model", SOON, look).await.unwrap();
    stage.sms_from(&phone, "I look for a house in Remera").await.unwrap();
    stage.sms_from(&phone, "STOP").await.unwrap();
    let first = stage.sms_to(&phone, 1).await;
    assert!(first.contains("no more SMS"), "{}", stage.outbox(&phone));
    stage.sms_to(&other, 1).await;
    stage.openai().control().clear_faults();
    assert!(!allows_sms(&stage, &phone).await);
}

#[tokio::test]
async fn a_keyword_that_comes_twice_is_confirmed_once() {
    let stage = stage().await;
    let phone = stage.stranger();
    let stop = ihuza_sim::mtn::Inbound::new(&phone, "STOP").id(&format!("stop-{phone}"));
    for _ in 0..3 {
        assert_eq!(stage.mtn().deliver(&stop).await.unwrap().status, Some(200));
    }
    stage.delivered(&phone, "sms delivered 1").await;
    // A message behind the three in the same queue: when it is put aside, they are through.
    stage.sms_from(&phone, "are you there?").await.unwrap();
    put_aside(&stage, &phone, 1).await;
    assert_eq!(stage.mtn().messages_to(&phone).len(), 1);
}
