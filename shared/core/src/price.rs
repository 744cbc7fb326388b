//! What a message would cost, by the rows of `channel_prices`: enough to say which channel is the cheaper one.

use serde_json::Value;

use crate::json::{as_text, str_at};

/// An amount of money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Millionths of the currency.
    pub micros: u64,
    /// ISO 4217.
    pub currency: [u8; 3],
}

impl Price {
    /// The price of so many.
    pub fn times(self, count: usize) -> Price {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        Price { micros: self.micros.saturating_mul(count), ..self }
    }
}

/// The prices in force for one client: `[{provider, kind, prefix, price, currency}]`.
///
/// `kind` is `segment` of an SMS provider, the category of a template or `service` of WhatsApp; `prefix` is how the
/// recipient's number begins (`+250`), empty for all; `price` is that of one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Prices<'a>(pub &'a [Value]);

impl Prices<'_> {
    /// The price for a recipient, by the longest prefix that fits; without a number only what holds for all.
    pub fn find(self, provider: &str, kind: &str, number: Option<&str>) -> Option<Price> {
        let rows = self.0.iter().filter(|row| {
            str_at(row, "provider") == Some(provider)
                && str_at(row, "kind") == Some(kind)
                && number.unwrap_or_default().starts_with(prefix(row))
        });
        read(rows.max_by_key(|row| prefix(row).len())?)
    }
}

fn prefix(row: &Value) -> &str {
    str_at(row, "prefix").unwrap_or_default()
}

fn read(row: &Value) -> Option<Price> {
    let currency = str_at(row, "currency")?.as_bytes().try_into().ok()?;
    Some(Price { micros: micros(&as_text(row.get("price")?)?)?, currency })
}

/// Millionths of a decimal number below a million; places behind the sixth are left away. By hand: it is exact, and a floating
/// point number costs 12 KB of wasm to read.
fn micros(decimal: &str) -> Option<u64> {
    let (whole, places) = decimal.split_once('.').unwrap_or((decimal, "0"));
    let is_number = |digits: &str, longest: usize| {
        (1..=longest).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !is_number(whole, 6) || !is_number(places, 32) {
        return None;
    }
    let digits = whole.bytes().chain(places.bytes().chain(std::iter::repeat(b'0')).take(6));
    Some(digits.fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn row(provider: &str, kind: &str, prefix: &str, price: Value) -> Value {
        json!({"provider": provider, "kind": kind, "prefix": prefix, "price": price, "currency": "USD"})
    }

    fn usd(micros: u64) -> Option<Price> {
        Some(Price { micros, currency: *b"USD" })
    }

    #[test]
    fn the_longest_prefix_that_fits_counts() {
        let rows = [
            row("mtn", "segment", "+25078", json!(0.012)),
            row("mtn", "segment", "", json!(0.05)),
            row("mtn", "segment", "+250", json!(0.0131)),
            row("whatsapp", "utility", "", json!(0.004)),
        ];
        let prices = Prices(&rows);
        assert_eq!(prices.find("mtn", "segment", Some("+250788123456")), usd(12_000));
        assert_eq!(prices.find("mtn", "segment", Some("+250738123456")), usd(13_100));
        assert_eq!(prices.find("mtn", "segment", Some("+254712345678")), usd(50_000));
        assert_eq!(prices.find("mtn", "segment", None), usd(50_000), "who is known by an id alone");
        assert_eq!(prices.find("whatsapp", "marketing", Some("+250788123456")), None);
        assert_eq!(usd(12_000).map(|price| price.times(3)), usd(36_000));
    }

    #[test]
    fn a_row_that_is_no_price_is_none() {
        for price in
            [json!(-0.1), json!("0,1"), json!(null), json!(1e9), json!(1_000_000), json!(".1"), json!("1."), json!("")]
        {
            assert_eq!(Prices(&[row("mtn", "segment", "", price)]).find("mtn", "segment", None), None);
        }
        assert_eq!(
            Prices(&[json!({"provider": "mtn", "kind": "segment", "price": 1})]).find("mtn", "segment", None),
            None
        );
    }

    proptest! {
        #[test]
        fn no_row_panics_and_six_places_are_kept(micros in 0_u64..1_000_000_000_000, word: String, n: usize) {
            // As Postgres writes it.
            let price: Value = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000).parse().unwrap();
            let rows = [row("mtn", &word, &word, price), json!(word), json!([word]), row(&word, &word, "", json!(word))];
            let found = Prices(&rows).find("mtn", &word, Some(&word));
            prop_assert_eq!(found, usd(micros));
            let _ = found.map(|price| price.times(n));
            let _ = Prices(&rows).find(&word, &word, None);
        }
    }
}
