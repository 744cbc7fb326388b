//! What a carrier says that a message cost, as the delivery log takes it: never converted, never rounded.

use serde_json::Value;

use crate::json::obj;

/// `{"amount": "0.0475", "currency": "USD"}`, or nothing where either is none. Twilio writes a price as a negative number.
///
/// ```
/// let price = ihuza_core::cost::read("-0.04750", "usd").unwrap();
/// assert_eq!(price.to_string(), r#"{"amount":"0.04750","currency":"USD"}"#);
/// ```
pub fn read(amount: &str, currency: &str) -> Option<Value> {
    let amount = amount.trim();
    let amount = amount.strip_prefix('-').unwrap_or(amount);
    let (whole, part) = amount.split_once('.').unwrap_or((amount, "0"));
    // The column holds six digits before the point.
    let digits = |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let currency = currency.trim().to_ascii_uppercase();
    let named = currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_uppercase());
    (digits(whole, 6) && digits(part, 12) && named)
        .then(|| obj(&mut [("amount", amount.into()), ("currency", (&currency).into())]))
}

/// The same of one text: `RWF 10.0000`, as Africa's Talking writes it.
pub fn read_text(text: &str) -> Option<Value> {
    let (currency, amount) = text.trim().split_once(' ')?;
    read(amount, currency)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(price: Option<Value>) -> String {
        price.map_or_else(|| "none".to_owned(), |price| price.to_string())
    }

    #[test]
    fn a_price_keeps_its_digits() {
        assert_eq!(said(read_text("RWF 10.0000")), r#"{"amount":"10.0000","currency":"RWF"}"#);
        assert_eq!(said(read_text(" kes 0.8 ")), r#"{"amount":"0.8","currency":"KES"}"#);
        assert_eq!(said(read("-0.04750", "USD")), r#"{"amount":"0.04750","currency":"USD"}"#);
        assert_eq!(said(read("0", "USD")), r#"{"amount":"0","currency":"USD"}"#);
    }

    #[test]
    fn what_the_column_cannot_hold_is_no_price() {
        for (amount, currency) in [
            ("", "USD"),
            ("1", ""),
            ("1e9", "USD"),
            ("1234567", "USD"),
            ("1.", "USD"),
            (".5", "USD"),
            ("--1", "USD"),
            ("1", "US1"),
            ("1", "Euro"),
        ] {
            assert_eq!(said(read(amount, currency)), "none", "{amount} {currency}");
        }
        assert_eq!(said(read_text("free")), "none");
    }

    proptest! {
        #[test]
        fn no_text_panics(amount: String, currency: String) {
            let _ = (read(&amount, &currency), read_text(&amount));
        }
    }
}
