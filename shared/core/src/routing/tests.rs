//! Every rule of the choice, case by case, and what holds for all facts.

use super::*;
use crate::policy::Reached;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::sync::LazyLock;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_226_400, 0).unwrap()
}

static APPROVED: LazyLock<Vec<Approved>> =
    LazyLock::new(|| whatsapp_template::approved("call_summary_v1", &[], "en,rw_RW"));

fn facts() -> Facts<'static> {
    Facts {
        purpose: Purpose::CallSummary,
        policy: Policy::Both,
        doubts: &[],
        prices: Prices::default(),
        number: Some("+250788123456"),
        sms_segments: 2,
        whatsapp: WhatsappEvidence::Yes,
        has_sms_number: true,
        allows_sms: true,
        allows_whatsapp: true,
        last_whatsapp_inbound_at: Some(now() - TimeDelta::hours(1)),
        locale: Locale::Rw,
        template: "call_summary_v1",
        approved: &APPROVED,
        probe_unknown: false,
        mirror_replies: false,
        inbound: Channel::Voice,
        sms_gate: Gate::Closed,
        whatsapp_gate: Gate::Closed,
        sms_configured: true,
        whatsapp_configured: true,
    }
}

fn answer() -> Facts<'static> {
    Facts { purpose: Purpose::Reply, inbound: Channel::Sms, ..facts() }
}

#[track_caller]
fn check(facts: Facts, expected: Expect) {
    let routing = decide(&facts, now());
    let mut out: Vec<String> = routing
        .channels
        .iter()
        .map(|channel| match (channel, &routing.whatsapp_form) {
            (Channel::Whatsapp, Some(WhatsappForm::Text)) => "whatsapp text".to_owned(),
            (Channel::Whatsapp, Some(WhatsappForm::Template { language, .. })) => {
                format!("whatsapp template {language}")
            }
            (channel, _) => channel.as_str().to_owned(),
        })
        .collect();
    out.extend(routing.deferred.iter().map(|channel| format!("{} later", channel.as_str())));
    out.extend(
        routing
            .waiting
            .map(|patience| format!("sms after {} s unless {}", patience.after.num_seconds(), patience.until.as_str())),
    );
    out.extend(routing.suppressed.iter().map(|(channel, reason)| format!("not {}: {reason}", channel.as_str())));
    expected.assert_eq(&out.join(", "));
}

#[test]
fn both_channels_where_the_person_is_on_whatsapp() {
    check(facts(), expect!["whatsapp text, sms"]);
    check(Facts { last_whatsapp_inbound_at: None, ..facts() }, expect!["whatsapp template rw_RW, sms"]);
    check(
        Facts { last_whatsapp_inbound_at: None, locale: Locale::Fr, ..facts() },
        expect!["sms, not whatsapp: template_not_approved"],
    );
    check(Facts { whatsapp: WhatsappEvidence::No, ..facts() }, expect!["sms, not whatsapp: not_on_whatsapp"]);
}

#[test]
fn the_window_closes_five_minutes_early() {
    let at = |minutes| Facts { last_whatsapp_inbound_at: Some(now() - TimeDelta::minutes(minutes)), ..facts() };
    check(at(23 * 60 + 54), expect!["whatsapp text, sms"]);
    check(at(23 * 60 + 55), expect!["whatsapp template rw_RW, sms"]);
    check(at(-2), expect!["whatsapp text, sms"]);
}

#[test]
fn unknown_is_tried_only_with_a_template_and_the_flag() {
    let unknown = Facts { whatsapp: WhatsappEvidence::Unknown, last_whatsapp_inbound_at: None, ..facts() };
    check(unknown.clone(), expect!["sms, not whatsapp: whatsapp_unknown"]);
    check(Facts { probe_unknown: true, ..unknown.clone() }, expect!["whatsapp template rw_RW, sms"]);
    check(
        Facts { probe_unknown: true, locale: Locale::Sw, ..unknown.clone() },
        expect!["sms, not whatsapp: template_not_approved"],
    );
    check(Facts { last_whatsapp_inbound_at: Some(now()), ..unknown }, expect!["whatsapp text, sms"]);
}

#[test]
fn the_persons_policy_is_kept() {
    check(Facts { policy: Policy::SmsOnly, ..facts() }, expect!["sms, not whatsapp: policy_sms_only"]);
    check(Facts { policy: Policy::WhatsappOnly, ..facts() }, expect!["whatsapp text, not sms: policy_whatsapp_only"]);
    check(
        Facts { policy: Policy::WhatsappOnly, whatsapp: WhatsappEvidence::No, ..facts() },
        expect!["sms, not whatsapp: not_on_whatsapp"],
    );
    check(Facts { policy: Policy::None, ..facts() }, expect!["not whatsapp: policy_none, not sms: policy_none"]);
}

fn then_sms() -> Facts<'static> {
    let patience = Patience { after: TimeDelta::minutes(10), until: Reached::Read };
    Facts { policy: Policy::WhatsappThenSms(patience), ..facts() }
}

#[test]
fn sms_waits_for_whatsapp_only_where_both_are_possible() {
    check(then_sms(), expect!["whatsapp text, sms after 600 s unless read"]);
    check(
        Facts { last_whatsapp_inbound_at: None, ..then_sms() },
        expect!["whatsapp template rw_RW, sms after 600 s unless read"],
    );
    check(Facts { whatsapp: WhatsappEvidence::No, ..then_sms() }, expect!["sms, not whatsapp: not_on_whatsapp"]);
    check(Facts { allows_sms: false, ..then_sms() }, expect!["whatsapp text, not sms: opted_out"]);
    check(
        Facts { inbound: Channel::Whatsapp, purpose: Purpose::Reply, ..then_sms() },
        expect!["whatsapp text, not sms: answered_on_whatsapp"],
    );
    check(
        Facts { mirror_replies: true, inbound: Channel::Sms, purpose: Purpose::Reply, ..then_sms() },
        expect!["whatsapp text, sms"],
    );
    let routing = decide(&then_sms(), now());
    assert_eq!(routing.reasons, ["service_window_open", "sms_waits_for_whatsapp"]);
    assert_eq!(routing.to_value()["sms_waits"], serde_json::json!({"after": 600, "until": "read"}));
}

#[test]
fn whoever_wants_one_message_gets_it_over_the_channel_that_is_up() {
    check(Facts { whatsapp_gate: Gate::Open, ..then_sms() }, expect!["sms, not whatsapp: carried_by_sms"]);
    check(Facts { sms_gate: Gate::Open, ..then_sms() }, expect!["whatsapp text, sms after 600 s unless read"]);
    check(
        Facts { whatsapp_gate: Gate::Open, sms_gate: Gate::Open, ..then_sms() },
        expect!["whatsapp later, sms after 600 s unless read"],
    );
    check(
        Facts { whatsapp: WhatsappEvidence::No, sms_gate: Gate::Open, ..then_sms() },
        expect!["sms later, not whatsapp: not_on_whatsapp"],
    );
    let template = || Facts { last_whatsapp_inbound_at: None, ..cheapest() };
    let dear = [price("mtn", "segment", 0.01, "USD"), price("whatsapp", "utility", 0.03, "USD")];
    check(
        Facts { prices: Prices(&dear), sms_gate: Gate::Open, ..template() },
        expect!["whatsapp template rw_RW, not sms: carried_by_whatsapp"],
    );
    check(Facts { whatsapp_gate: Gate::Open, ..cheapest() }, expect!["sms, not whatsapp: carried_by_sms"]);
}

fn cheapest() -> Facts<'static> {
    Facts { policy: Policy::Cheapest, ..facts() }
}

fn price(provider: &str, kind: &str, price: f64, currency: &str) -> Value {
    serde_json::json!({"provider": provider, "kind": kind, "prefix": "+250", "price": price, "currency": currency})
}

#[track_caller]
fn check_prices(facts: Facts, rows: &[Value], reason: &str, expected: Expect) {
    let facts = Facts { prices: Prices(rows), ..facts };
    assert!(decide(&facts, now()).reasons.contains(&reason), "{:?}", decide(&facts, now()).reasons);
    check(facts, expected);
}

#[test]
fn the_cheaper_channel_carries_it_alone() {
    let template = || Facts { last_whatsapp_inbound_at: None, ..cheapest() };
    let segment = |cents| price("mtn", "segment", cents / 100.0, "USD");
    let utility = |cents| price("whatsapp", "utility", cents / 100.0, "USD");
    check_prices(cheapest(), &[], "whatsapp_is_free", expect!["whatsapp text, not sms: policy_cheapest"]);
    let service = price("whatsapp", "service", 0.004, "USD");
    check_prices(
        cheapest(),
        &[service.clone(), segment(0.1)],
        "sms_is_cheaper",
        expect!["sms, not whatsapp: policy_cheapest"],
    );
    check_prices(
        cheapest(),
        &[service, segment(1.0)],
        "sms_is_not_cheaper",
        expect!["whatsapp text, not sms: policy_cheapest"],
    );
    // Two segments: 2 x 1.3 against 2.5.
    check_prices(
        template(),
        &[segment(1.3), utility(2.5)],
        "sms_is_not_cheaper",
        expect!["whatsapp template rw_RW, not sms: policy_cheapest"],
    );
    check_prices(
        template(),
        &[segment(1.2), utility(2.5)],
        "sms_is_cheaper",
        expect!["sms, not whatsapp: policy_cheapest"],
    );
    check_prices(
        template(),
        &[segment(1.25), utility(2.5)],
        "sms_is_not_cheaper",
        expect!["whatsapp template rw_RW, not sms: policy_cheapest"],
    );
    let row = serde_json::json!({"name": "call_summary_v1", "language": "rw_RW", "category": "marketing", "status": "approved"});
    let approved = whatsapp_template::approved("call_summary_v1", &[row], "");
    let marketing = Facts { approved: &approved, ..template() };
    let rows = [segment(1.3), utility(2.5), price("whatsapp", "marketing", 0.07, "USD")];
    check_prices(marketing, &rows, "sms_is_cheaper", expect!["sms, not whatsapp: policy_cheapest"]);
}

#[test]
fn without_prices_that_compare_the_cheapest_is_both() {
    let template = || Facts { last_whatsapp_inbound_at: None, ..cheapest() };
    let rwf = price("mtn", "segment", 12.0, "RWF");
    let utility = price("whatsapp", "utility", 0.004, "USD");
    check_prices(template(), &[], "prices_not_known", expect!["whatsapp template rw_RW, sms"]);
    check_prices(
        template(),
        std::slice::from_ref(&utility),
        "prices_not_known",
        expect!["whatsapp template rw_RW, sms"],
    );
    check_prices(template(), &[rwf, utility], "prices_not_comparable", expect!["whatsapp template rw_RW, sms"]);
    check(Facts { whatsapp: WhatsappEvidence::No, ..cheapest() }, expect!["sms, not whatsapp: not_on_whatsapp"]);
    check(Facts { allows_sms: false, ..cheapest() }, expect!["whatsapp text, not sms: opted_out"]);
    check(
        Facts { mirror_replies: true, policy: Policy::Cheapest, ..answer() },
        expect!["sms, not whatsapp: policy_cheapest"],
    );
}

#[test]
fn what_could_not_be_read_of_the_policy_is_among_the_reasons() {
    let reasons = decide(&Facts { doubts: &["policy_not_understood"], ..facts() }, now()).reasons;
    assert_eq!(reasons, ["policy_not_understood", "service_window_open", "sms"]);
}

#[test]
fn nothing_goes_by_sms_after_stop_or_without_a_number() {
    check(Facts { allows_sms: false, ..facts() }, expect!["whatsapp text, not sms: opted_out"]);
    check(
        Facts { allows_sms: false, whatsapp: WhatsappEvidence::No, ..facts() },
        expect!["not whatsapp: not_on_whatsapp, not sms: opted_out"],
    );
    check(Facts { has_sms_number: false, ..facts() }, expect!["whatsapp text, not sms: no_phone_number"]);
    check(
        Facts { sms_configured: false, whatsapp_configured: false, ..facts() },
        expect!["not whatsapp: whatsapp_not_configured, not sms: sms_not_configured"],
    );
}

#[test]
fn a_deployment_without_whatsapp_sends_sms_alone_whatever_is_known_or_wished() {
    let sms_alone = || Facts { whatsapp_configured: false, ..facts() };
    for facts in [
        sms_alone(),
        Facts { policy: Policy::WhatsappOnly, ..sms_alone() },
        Facts { whatsapp: WhatsappEvidence::Unknown, probe_unknown: true, ..sms_alone() },
        Facts { mirror_replies: true, whatsapp_configured: false, ..answer() },
    ] {
        check(facts, expect!["sms, not whatsapp: whatsapp_not_configured"]);
    }
    check(
        Facts { sms_gate: Gate::Open, whatsapp_configured: false, ..answer() },
        expect!["sms later, not whatsapp: mirror_off"],
    );
    let reasons = decide(&sms_alone(), now()).reasons;
    assert_eq!(reasons, ["whatsapp_not_configured", "sms"], "kept with the message");
}

#[test]
fn a_provider_that_is_down_makes_its_message_wait() {
    check(Facts { whatsapp_gate: Gate::Open, ..facts() }, expect!["sms, whatsapp later"]);
    check(Facts { sms_gate: Gate::Open, ..facts() }, expect!["whatsapp text, sms later"]);
    check(Facts { sms_gate: Gate::Open, whatsapp_gate: Gate::Open, ..facts() }, expect!["whatsapp later, sms later"]);
    check(Facts { sms_gate: Gate::Probe, whatsapp_gate: Gate::Probe, ..facts() }, expect!["whatsapp text, sms"]);
}

#[test]
fn an_answer_goes_where_the_question_came_from() {
    check(answer(), expect!["sms, not whatsapp: mirror_off"]);
    check(Facts { mirror_replies: true, ..answer() }, expect!["whatsapp text, sms"]);
    check(
        Facts { mirror_replies: true, last_whatsapp_inbound_at: None, ..answer() },
        expect!["sms, not whatsapp: service_window_closed"],
    );
    check(
        Facts { mirror_replies: true, policy: Policy::SmsOnly, ..answer() },
        expect!["sms, not whatsapp: policy_sms_only"],
    );
    check(Facts { policy: Policy::None, ..answer() }, expect!["sms, not whatsapp: mirror_off"]);
    check(Facts { inbound: Channel::Whatsapp, ..answer() }, expect!["whatsapp text, not sms: answered_on_whatsapp"]);
    check(
        Facts { inbound: Channel::Whatsapp, last_whatsapp_inbound_at: None, ..answer() },
        expect!["sms, not whatsapp: service_window_closed"],
    );
}

#[test]
fn an_answer_takes_the_other_channel_when_its_own_is_down_and_comes_once() {
    check(Facts { sms_gate: Gate::Open, ..answer() }, expect!["whatsapp text, not sms: carried_by_whatsapp"]);
    check(
        Facts { sms_gate: Gate::Open, whatsapp: WhatsappEvidence::No, ..answer() },
        expect!["sms later, not whatsapp: mirror_off"],
    );
    check(
        Facts { inbound: Channel::Whatsapp, whatsapp_gate: Gate::Open, ..answer() },
        expect!["sms, not whatsapp: carried_by_sms"],
    );
}

#[test]
fn the_confirmation_of_stop_is_sent_in_spite_of_it() {
    check(
        Facts { purpose: Purpose::Keyword, allows_sms: false, policy: Policy::None, ..answer() },
        expect!["sms, not whatsapp: keyword_answered_where_sent"],
    );
    check(
        Facts { purpose: Purpose::Keyword, inbound: Channel::Whatsapp, allows_whatsapp: false, ..answer() },
        expect!["whatsapp text, not sms: keyword_answered_where_sent"],
    );
}

static PRICES: LazyLock<[Vec<Value>; 4]> = LazyLock::new(|| {
    let (dear, cheap) = (price("mtn", "segment", 9.0, "USD"), price("mtn", "segment", 0.001, "USD"));
    let (service, utility) = (price("whatsapp", "service", 0.1, "USD"), price("whatsapp", "utility", 0.1, "USD"));
    [
        vec![],
        vec![dear.clone(), utility.clone()],
        vec![cheap.clone(), service.clone(), utility.clone()],
        vec![cheap, service, price("whatsapp", "utility", 0.1, "RWF")],
    ]
});

fn any_facts() -> impl Strategy<Value = Facts<'static>> {
    let bits = prop::collection::vec(any::<bool>(), 9);
    (bits, 0_usize..3, 0_usize..6, 0_usize..3, 0_usize..3, 0_usize..3, 0_usize..4, 0_usize..4).prop_map(
        |(bits, purpose, policy, evidence, sms_gate, whatsapp_gate, locale, priced)| {
            let gates = [Gate::Closed, Gate::Open, Gate::Probe];
            Facts {
                purpose: [Purpose::CallSummary, Purpose::Reply, Purpose::Keyword][purpose],
                policy: crate::policy::ALL[policy],
                doubts: &[],
                prices: Prices(&PRICES[priced]),
                number: Some("+250788123456"),
                sms_segments: 2,
                whatsapp: [WhatsappEvidence::Yes, WhatsappEvidence::No, WhatsappEvidence::Unknown][evidence],
                has_sms_number: bits[0],
                allows_sms: bits[1],
                allows_whatsapp: bits[2],
                last_whatsapp_inbound_at: bits[3].then(now),
                locale: crate::locale::ALL[locale],
                template: "call_summary_v1",
                approved: &APPROVED,
                probe_unknown: bits[4],
                mirror_replies: bits[5],
                inbound: if bits[6] { Channel::Sms } else { Channel::Whatsapp },
                sms_gate: gates[sms_gate],
                whatsapp_gate: gates[whatsapp_gate],
                sms_configured: bits[7],
                whatsapp_configured: bits[8],
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048.max(ProptestConfig::default().cases), ..ProptestConfig::default() })]

    #[test]
    fn every_channel_is_sent_deferred_or_suppressed_exactly_once(facts in any_facts()) {
        let routing = decide(&facts, now());
        for channel in [Channel::Whatsapp, Channel::Sms] {
            let times = routing.channels.iter().filter(|found| **found == channel).count()
                + routing.deferred.iter().filter(|found| **found == channel).count()
                + usize::from(channel == Channel::Sms && routing.waiting.is_some())
                + routing.suppressed.iter().filter(|(found, _)| *found == channel).count();
            prop_assert_eq!(times, 1, "{:?}", routing);
        }
        prop_assert!(!routing.reasons.is_empty());
    }

    #[test]
    fn no_wish_of_the_person_is_broken(facts in any_facts()) {
        let routing = decide(&facts, now());
        let used = |channel| {
            routing.sends(channel)
                || routing.deferred.contains(&channel)
                || channel == Channel::Sms && routing.waiting.is_some()
        };
        // SMS waits for nothing but WhatsApp, and only where that was asked for.
        if let Some(patience) = routing.waiting {
            prop_assert_eq!(facts.policy, Policy::WhatsappThenSms(patience));
            prop_assert!(facts.purpose == Purpose::CallSummary && used(Channel::Whatsapp));
        }
        if facts.purpose == Purpose::CallSummary && facts.policy == Policy::Cheapest {
            let unknown = routing.reasons.iter().any(|reason| reason.starts_with("prices_not_"));
            prop_assert!(unknown || !(used(Channel::Sms) && used(Channel::Whatsapp)));
        }
        // A wish for one channel or the other never leaves somebody without both.
        if facts.purpose == Purpose::CallSummary && facts.policy != Policy::None {
            let both = decide(&Facts { policy: Policy::Both, ..facts.clone() }, now());
            prop_assert!(both.channels.is_empty() || facts.policy == Policy::SmsOnly || facts.policy == Policy::WhatsappOnly
                || !routing.channels.is_empty());
        }
        if facts.purpose != Purpose::Keyword {
            prop_assert!(facts.allows_sms || !used(Channel::Sms));
            prop_assert!(facts.allows_whatsapp || !used(Channel::Whatsapp));
        }
        prop_assert!(facts.has_sms_number || !used(Channel::Sms));
        prop_assert!(facts.sms_configured || !used(Channel::Sms));
        prop_assert!(facts.whatsapp_configured || !used(Channel::Whatsapp));
        prop_assert!(facts.whatsapp != WhatsappEvidence::No || !used(Channel::Whatsapp));
        prop_assert!(facts.sms_gate != Gate::Open || !routing.sends(Channel::Sms));
        prop_assert!(facts.whatsapp_gate != Gate::Open || !routing.sends(Channel::Whatsapp));
        if facts.purpose == Purpose::CallSummary && facts.policy == Policy::None {
            prop_assert!(routing.channels.is_empty() && routing.deferred.is_empty());
        }
        let window = service_window_open(facts.last_whatsapp_inbound_at, now());
        prop_assert!(routing.whatsapp_form != Some(WhatsappForm::Text) || window);
        prop_assert_eq!(routing.whatsapp_form.is_some(), used(Channel::Whatsapp));
    }
}
