//! Rows as CSV (RFC 4180) and as JSON lines.

use super::columns::Kind;

/// What spreadsheets take for a formula when a cell begins with it (OWASP, CSV Injection).
const FORMULA: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

pub fn csv_header(names: &[&str]) -> String {
    names.join(",") + "\r\n"
}

/// Nothing and the empty text are both an empty cell.
pub fn csv_line<'a>(cells: impl Iterator<Item = (Kind, Option<&'a str>)>) -> String {
    let cells: Vec<String> = cells.map(|(kind, text)| csv_cell(kind, text.unwrap_or_default())).collect();
    cells.join(",") + "\r\n"
}

fn csv_cell(kind: Kind, text: &str) -> String {
    let guard = if kind == Kind::Text && text.starts_with(FORMULA) { "'" } else { "" };
    if text.contains(['"', ',', '\r', '\n']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{guard}{text}")
    }
}

/// Counts are numbers; amounts are strings, which no reader rounds.
pub fn json_line<'a>(cells: impl Iterator<Item = (&'a str, (Kind, Option<&'a str>))>) -> String {
    let members: Vec<String> = cells
        .map(|(name, (kind, text))| {
            let value = match text {
                None => "null".to_owned(),
                Some(text) if kind == Kind::Count => text.to_owned(),
                Some(text) => serde_json::Value::from(text).to_string(),
            };
            format!("\"{name}\":{value}")
        })
        .collect();
    format!("{{{}}}\n", members.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        let cells = [
            (Kind::Plain, Some("plain")),
            (Kind::Text, Some("a \"b\", c\nd")),
            (Kind::Count, None),
            (Kind::Text, Some("")),
        ];
        assert_eq!(csv_line(cells.into_iter()), "plain,\"a \"\"b\"\", c\nd\",,\r\n");
        assert_eq!(csv_header(&["a", "b"]), "a,b\r\n");
    }

    #[test]
    fn no_text_becomes_a_formula_and_no_amount_becomes_a_text() {
        for (kind, text, expected) in [
            (Kind::Text, "=1+1", "'=1+1"),
            (Kind::Text, "+250788123456", "'+250788123456"),
            (Kind::Text, "@cmd", "'@cmd"),
            (Kind::Text, "\t=1", "'\t=1"),
            (Kind::Text, "-1,\"x\"", "\"'-1,\"\"x\"\"\""),
            (Kind::Text, "a=1", "a=1"),
            (Kind::Amount, "-0.007500", "-0.007500"),
        ] {
            assert_eq!(csv_cell(kind, text), expected);
        }
    }

    #[test]
    fn a_line_of_json_keeps_order_decimals_and_what_is_not_known() {
        let cells = [
            ("kind", (Kind::Plain, Some("sms"))),
            ("cost", (Kind::Amount, Some("0.100000"))),
            ("segments", (Kind::Count, Some("2"))),
            ("text", (Kind::Text, Some("a \"b\"\n"))),
            ("margin", (Kind::Amount, None)),
        ];
        let line = json_line(cells.into_iter());
        assert_eq!(
            line,
            "{\"kind\":\"sms\",\"cost\":\"0.100000\",\"segments\":2,\"text\":\"a \\\"b\\\"\\n\",\"margin\":null}\n"
        );
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_ok());
    }
}
