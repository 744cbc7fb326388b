//! Nothing but what was signed is taken, at both signed doors (Meta's and our own for carriers): whatever is forged, cut short,
//! put off, sent to the other door, or changed in a single bit.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on should stop where it is")]

use chrono::{DateTime, Utc};
use ihuza_core::signature::{TOLERANCE_S, hmac_sha256, meta, timestamped};

const SECRETS: [&str; 2] = ["the secret of today", "the secret before"];
const BODY: &[u8] = b"{\"object\":\"whatsapp_business_account\",\"entry\":[{\"id\":\"1\",\"changes\":[]}]}";
const SENT: i64 = 1_795_234_800;

/// A door: the key signs the body; a presented signature is taken or not, at a time.
struct Door {
    name: &'static str,
    sign: fn(&str, &[u8]) -> String,
    takes: fn(&str, &[u8], i64) -> bool,
}

const DOORS: [Door; 2] = [
    Door {
        name: "Meta's",
        sign: |secret, body| header(&hmac_sha256(secret.as_bytes(), &[body])),
        takes: |signature, body, _| meta(Some(signature), body, &SECRETS),
    },
    Door {
        name: "the carriers'",
        sign: |secret, body| header(&hmac_sha256(secret.as_bytes(), &[SENT.to_string().as_bytes(), b".", body])),
        takes: |signature, body, now| timestamped(Some(signature), Some(&SENT.to_string()), body, &SECRETS, at(now)),
    },
];

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

fn header(digest: &[u8]) -> String {
    digest.iter().fold("sha256=".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

#[test]
fn what_either_secret_signed_is_taken() {
    for door in DOORS {
        for secret in SECRETS {
            assert!((door.takes)(&(door.sign)(secret, BODY), BODY, SENT), "{}", door.name);
        }
        for stranger in
            ["", " ", "the secret of tomorrow", "the secret of toda", "the secret of today ", "THE SECRET OF TODAY"]
        {
            assert!(!(door.takes)(&(door.sign)(stranger, BODY), BODY, SENT), "{}: {stranger:?}", door.name);
        }
    }
}

#[test]
fn no_signature_with_another_bit_or_of_another_length_is_taken() {
    for door in DOORS {
        let sound = (door.sign)(SECRETS[0], BODY);
        let digits = sound.strip_prefix("sha256=").unwrap();
        for place in 0..digits.len() {
            let digit = u8::from_str_radix(&digits[place..=place], 16).unwrap();
            for bit in 0..4 {
                let changed = format!("sha256={}{:x}{}", &digits[..place], digit ^ 1 << bit, &digits[place + 1..]);
                assert!(!(door.takes)(&changed, BODY, SENT), "{}: bit {bit} of digit {place}", door.name);
            }
        }
        for end in 0..sound.len() {
            assert!(!(door.takes)(&sound[..end], BODY, SENT), "{}: the first {end} characters", door.name);
        }
        for longer in ["0", "00", "\0", " sha256="] {
            assert!(!(door.takes)(&(sound.clone() + longer), BODY, SENT), "{}: {longer:?} behind it", door.name);
        }
        let zeros = "0".repeat(64);
        for (what, presented) in [
            ("of another kind", format!("sha1={digits}")),
            ("without a kind", digits.to_owned()),
            ("of zeros", format!("sha256={zeros}")),
            ("twice", format!("{sound},{sound}")),
            ("in base64's place", "sha256=qrvM3e7/".to_owned()),
        ] {
            assert!(!(door.takes)(&presented, BODY, SENT), "{}: {what}", door.name);
        }
    }
}

#[test]
fn no_body_with_another_bit_or_of_another_length_is_taken() {
    for door in DOORS {
        let sound = (door.sign)(SECRETS[1], BODY);
        for end in 0..BODY.len() {
            assert!(!(door.takes)(&sound, &BODY[..end], SENT), "{}: the first {end} bytes", door.name);
        }
        for place in 0..BODY.len() {
            for bit in 0..8 {
                let mut changed = BODY.to_vec();
                changed[place] ^= 1 << bit;
                assert!(!(door.takes)(&sound, &changed, SENT), "{}: bit {bit} of byte {place}", door.name);
            }
        }
        for longer in [b" " as &[u8], b"\n", b"\0", BODY] {
            assert!(!(door.takes)(&sound, &[BODY, longer].concat(), SENT), "{}: more behind it", door.name);
        }
    }
}

#[test]
fn a_signature_of_one_door_opens_no_other() {
    let [metas, carriers] = DOORS;
    assert!(!(carriers.takes)(&(metas.sign)(SECRETS[0], BODY), BODY, SENT));
    assert!(!(metas.takes)(&(carriers.sign)(SECRETS[0], BODY), BODY, SENT));
    // Where timestamp and body meet there is a point: no digit can wander over it.
    let signature = (carriers.sign)(SECRETS[0], b"1.hello");
    let moved = format!("{SENT}.1");
    assert!(!timestamped(Some(&signature), Some(&moved), b"hello", &SECRETS, at(SENT)));
}

/// Taken again within the tolerance, when the same work is found done; never later, and never under another time.
#[test]
fn what_is_played_again_later_is_not_taken() {
    let [_, carriers] = DOORS;
    let sound = (carriers.sign)(SECRETS[0], BODY);
    for later in -TOLERANCE_S - 600..=TOLERANCE_S + 600 {
        assert_eq!((carriers.takes)(&sound, BODY, SENT + later), later.abs() <= TOLERANCE_S, "{later} s later");
    }
    for day in [1, 30, 365] {
        let now = SENT + day * 86_400;
        assert!(!(carriers.takes)(&sound, BODY, now));
        // With the time of today in the header the signature is another one.
        assert!(!timestamped(Some(&sound), Some(&now.to_string()), BODY, &SECRETS, at(now)));
    }
    for none in ["", "now", "1e9", "-1795234800", "1795234800.0", "٠", "99999999999999999999"] {
        assert!(!timestamped(Some(&sound), Some(none), BODY, &SECRETS, at(SENT)), "{none:?}");
    }
    assert!(!timestamped(Some(&sound), None, BODY, &SECRETS, at(SENT)));
    assert!(!timestamped(None, Some(&SENT.to_string()), BODY, &SECRETS, at(SENT)));
}
