//! The bill with which the story ends: what each call and SMS cost and what it sells for, read back from agent_calls and agent_sms.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ihuza_sim::world::World;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::progress;

/// What an operator enters before the first call: prices of the story, nobody's real ones. SMS are bought and sold in Rwandan
/// francs; minutes of the trunk and the model are paid in dollars.
pub const PRICES: &str = "insert into public.channel_prices (side, provider, kind, price, currency, valid_from)
                          select x.side, 'any', x.kind, x.price, x.currency, now() - interval '1 day'
                            from (values ('cost', 'segment', 12, 'RWF'), ('revenue', 'segment', 18, 'RWF'), ('cost', 'minute', 0.011, 'USD'),
                                         ('revenue', 'minute', 120, 'RWF')) x (side, kind, price, currency)
                          on conflict do nothing";
pub const RATE: &str =
    "insert into public.fx_rates (base, quote, valid_from, rate) values ('USD', 'RWF', current_date - 1, 1452.25)
                        on conflict do nothing";

/// Amounts as text, exact.
#[derive(Serialize)]
pub struct Bill {
    /// A call or an SMS each, in the order in which they happened.
    lines: Vec<Map<String, Value>>,
    /// Calls and SMS, a pair of currencies each.
    totals: Vec<Map<String, Value>>,
}

impl Bill {
    /// Read when every call that ended and every SMS that was sent is on it, with a cost, a price and a margin.
    pub async fn read(world: &World, patience: Duration) -> Result<Bill> {
        let whole = "select (select count(*) from public.agent_sms s join public.message_delivery_log l on l.id = s.delivery_id)
                          = (select count(*) from public.message_delivery_log where channel = 'sms' and direction = 'outbound')
                        and (select count(*) from public.agent_calls where voice_call_id is not null)
                          = (select count(*) from public.voice_calls where ended_at is not null)
                        and (select count(*) > 0 and bool_and(margin is not null) from public.agent_sms)
                        and (select count(*) > 0 and bool_and(margin is not null) from public.agent_calls)";
        world.wait_for_sql(whole, patience).await.context("a call or an SMS is not on the bill, or without a price")?;
        let communications = "
            select 'call' as kind, id, started_at as at, phone_number, status,
                   coalesce(duration_seconds, extract(epoch from ended_at - coalesce(answered_at, started_at)))::integer as duration_seconds, null::smallint as segments, cost, cost_currency, revenue,
                   revenue_currency, fx_rate, margin from public.agent_calls
            union all
            select 'sms', id, sent_at, phone_number, status, null, segments, cost, cost_currency, revenue, revenue_currency, fx_rate, margin from public.agent_sms";
        let lines = world
            .rows(&format!(
                "select kind, id, at, phone_number, status, duration_seconds, segments, trim_scale(cost)::text as cost, cost_currency,
                        trim_scale(revenue)::text as revenue, revenue_currency, trim_scale(fx_rate)::text as fx_rate, trim_scale(margin)::text as margin
                   from ({communications}) c order by at, id"
            ))
            .await?;
        let totals = world
            .rows(&format!(
                "select kind, count(*) as count, cost_currency, revenue_currency, trim_scale(sum(cost))::text as cost, trim_scale(sum(revenue))::text as revenue,
                        trim_scale(sum(margin))::text as margin, trim_scale(round(avg(margin), 6))::text as margin_each,
                        trim_scale(sum(sum(margin)) over (partition by revenue_currency))::text as margin_in_all
                   from ({communications}) c group by kind, cost_currency, revenue_currency order by kind, cost_currency"
            ))
            .await?;
        ensure!(!totals.is_empty(), "the bill has no total");
        let bill = Bill { lines, totals };
        bill.has_sms_and_calls()?;
        Ok(bill)
    }

    fn has_sms_and_calls(&self) -> Result<()> {
        for kind in ["call", "sms"] {
            let sold = self.lines.iter().filter(|line| text(line, "kind") == kind);
            ensure!(sold.clone().count() > 0, "there is no {kind} on the bill");
            ensure!(sold.clone().all(|line| !text(line, "revenue").is_empty()), "a {kind} on the bill has no price");
        }
        Ok(())
    }

    pub fn print(&self) {
        progress::headline("The bill");
        for line in &self.lines {
            let size = match (
                line.get("duration_seconds").and_then(Value::as_i64),
                line.get("segments").and_then(Value::as_i64),
            ) {
                (Some(seconds), _) => format!("{seconds} s"),
                (None, Some(1)) => "1 segment".to_owned(),
                (None, segments) => format!("{} segments", segments.unwrap_or_default()),
            };
            progress::note(&format!(
                "{:<5} {:<15} {:<10} {size:<10} cost {:>14}   sells for {:>8}   margin {:>14}",
                text(line, "kind"),
                text(line, "phone_number"),
                text(line, "status"),
                amount(line, "cost", "cost_currency"),
                amount(line, "revenue", "revenue_currency"),
                amount(line, "margin", "revenue_currency"),
            ));
        }
        for total in &self.totals {
            progress::done(&format!(
                "{} {}: cost {}, sold for {}, margin {}, that is {} each",
                total.get("count").and_then(Value::as_i64).unwrap_or_default(),
                if text(total, "kind") == "call" { "calls" } else { "SMS" },
                amount(total, "cost", "cost_currency"),
                amount(total, "revenue", "revenue_currency"),
                amount(total, "margin", "revenue_currency"),
                amount(total, "margin_each", "revenue_currency"),
            ));
        }
        if let Some(total) = self.totals.first() {
            progress::done(&format!(
                "margin of the whole story: {}",
                amount(total, "margin_in_all", "revenue_currency")
            ));
        }
    }
}

fn text<'a>(row: &'a Map<String, Value>, name: &str) -> &'a str {
    row.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn amount(row: &Map<String, Value>, amount: &str, currency: &str) -> String {
    format!("{} {}", text(row, amount), text(row, currency))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_bill_without_a_price_or_without_a_call_is_none() {
        let line = |kind: &str, revenue: Value| json!({"kind": kind, "revenue": revenue}).as_object().unwrap().clone();
        let bill = |lines: Vec<Map<String, Value>>| Bill { lines, totals: Vec::new() };
        assert!(bill(vec![line("call", json!("120")), line("sms", json!("18"))]).has_sms_and_calls().is_ok());
        assert!(bill(vec![line("sms", json!("18"))]).has_sms_and_calls().is_err());
        assert!(bill(vec![line("call", json!(null)), line("sms", json!("18"))]).has_sms_and_calls().is_err());
    }
}
