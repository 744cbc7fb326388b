//! The columns of an export, in an order that stays: whoever reads it by place must be able to.

/// How a cell is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Words that people or programs outside chose.
    Text,
    /// Codes, ids and times of ours: nothing that could be a formula.
    Plain,
    /// An exact decimal.
    Amount,
    Count,
}

pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
    /// Of agent_sms and of agent_calls, both called r; c is the client, d the deployment, t its type.
    sms: &'static str,
    call: &'static str,
}

const NOTHING: &str = "null";

const fn of(name: &'static str, kind: Kind, sms: &'static str, call: &'static str) -> Column {
    Column { name, kind, sms, call }
}

const fn both(name: &'static str, kind: Kind, sql: &'static str) -> Column {
    of(name, kind, sql, sql)
}

/// New ones come at the end.
const COLUMNS: &[Column] = &[
    of("kind", Kind::Plain, "'sms'", "'call'"),
    both("id", Kind::Plain, "r.id"),
    of("at", Kind::Plain, "{r.sent_at}", "{r.started_at}"),
    both("client", Kind::Text, "c.slug"),
    both("deployment", Kind::Text, "d.name"),
    both("agent_type", Kind::Text, "t.name"),
    of("direction", Kind::Plain, "'outbound'", "r.direction"),
    both("phone_number", Kind::Text, "r.phone_number"),
    both("status", Kind::Plain, "r.status"),
    of("provider", Kind::Text, "r.provider", NOTHING),
    of("provider_status", Kind::Text, "r.provider_status", NOTHING),
    of("provider_message_sid", Kind::Text, "r.provider_message_sid", NOTHING),
    of("failure_reason", Kind::Text, "r.failure_reason", NOTHING),
    of("encoding", Kind::Plain, "r.encoding", NOTHING),
    of("segments", Kind::Count, "r.segments", NOTHING),
    of("duration_seconds", Kind::Count, NOTHING, "r.duration_seconds"),
    of("delivered_at", Kind::Plain, "{r.delivered_at}", NOTHING),
    of("failed_at", Kind::Plain, "{r.failed_at}", NOTHING),
    of("ended_at", Kind::Plain, NOTHING, "{r.ended_at}"),
    of("unit_cost", Kind::Amount, "r.unit_cost", NOTHING),
    both("cost", Kind::Amount, "r.cost"),
    both("cost_currency", Kind::Plain, "r.cost_currency"),
    of("cost_source", Kind::Plain, "r.cost_source", NOTHING),
    of("unit_revenue", Kind::Amount, "r.unit_revenue", NOTHING),
    both("revenue", Kind::Amount, "r.revenue"),
    both("revenue_currency", Kind::Plain, "r.revenue_currency"),
    of("revenue_source", Kind::Plain, "r.revenue_source", NOTHING),
    both("fx_rate", Kind::Amount, "r.fx_rate"),
    both("fx_date", Kind::Plain, "r.fx_date"),
    both("margin", Kind::Amount, "r.margin"),
    both("client_id", Kind::Plain, "r.client_id"),
    both("deployment_id", Kind::Plain, "r.deployment_id"),
    both("session_id", Kind::Plain, "r.session_id"),
    of("call_id", Kind::Plain, "r.call_id", NOTHING),
    both("prospect_id", Kind::Plain, "r.prospect_id"),
    both("sequence_id", Kind::Plain, "r.sequence_id"),
];

const TEXT: Column = of("message_content", Kind::Text, "r.message_content", NOTHING);

/// Oldest first; ids make the order the same each time.
pub const ORDER: &str = "3, 1 desc, 2";

/// With what the messages say, if they are asked for.
pub fn all(texts: bool) -> impl Iterator<Item = &'static Column> {
    COLUMNS.iter().chain(texts.then_some(&TEXT))
}

/// What is selected of agent_sms and of agent_calls: all of it as text, for the database writes decimals exactly.
pub fn of_both(texts: bool) -> (String, String) {
    let selected = |sql: fn(&Column) -> &'static str| {
        let cells: Vec<String> = all(texts).map(|column| cell(sql(column))).collect();
        cells.join(", ")
    };
    (selected(|column| column.sms), selected(|column| column.call))
}

/// `{a time}` as UTC in ISO 8601, whatever the time zone in which days begin.
fn cell(sql: &str) -> String {
    match sql.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(time) => format!(r#"to_char({time} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#),
        None => format!("({sql})::text"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_tables_give_the_same_columns_and_texts_only_when_asked() {
        let names: Vec<_> = all(false).map(|column| column.name).collect();
        assert_eq!(names.first(), Some(&"kind"));
        assert!(!names.contains(&"message_content") && all(true).count() == names.len() + 1);
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        let (sms, call) = of_both(false);
        assert_eq!(sms.matches("::text").count() + sms.matches("to_char").count(), names.len());
        assert_eq!(call.matches("::text").count() + call.matches("to_char").count(), names.len());
    }
}
