//! How the questions are answered, which no time can show: agent_sms is never read as a whole, and costs are summed from an
//! index alone.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio_postgres::Client;

use super::super::Figure;
use super::sms::{COST, KINDS, Kind, Role, Subject, Subjects};

/// So many rows of a hundred that an index knows may have to be looked up in the table.
const HEAP_FETCHES_PERCENT: f64 = 1.0;
/// Plans that are looked at, of deployments of all sizes.
const LOOKED_AT: usize = 10;

/// Times that agent_sms was read as a whole, by whatever statement: also those that functions run.
pub struct Scans(i64);

impl Scans {
    pub async fn begin(owner: &Client) -> Result<Self> {
        Ok(Self(full_reads(owner).await?))
    }

    pub async fn check(&mut self, owner: &Client, kind: &Kind, role: Role, faults: &mut Vec<String>) -> Result<()> {
        let now = full_reads(owner).await?;
        if now > self.0 {
            faults.push(format!(
                "{} as {}: agent_sms was read as a whole {} times",
                kind.name,
                role.name(),
                now - self.0
            ));
        }
        self.0 = now;
        Ok(())
    }
}

async fn full_reads(owner: &Client) -> Result<i64> {
    // What a connection did is told when it has been idle for a second.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    let sql = "select coalesce(sum(seq_scan), 0)::bigint from pg_stat_user_tables where schemaname = 'public' and relname = 'agent_sms'";
    owner.batch_execute("select pg_stat_clear_snapshot()").await?;
    Ok(owner.query_one(sql, &[]).await?.get(0))
}

/// Looks at the plans of one kind of question.
pub async fn check(owner: &Client, kind: &Kind, subjects: &mut Subjects, faults: &mut Vec<String>) -> Result<()> {
    for role in kind.roles {
        for _ in 0..LOOKED_AT {
            let plan = plan(owner, kind, *role, &subjects.next()?, "").await?;
            let mut whole = 0;
            walk(&plan, &mut |node| whole += usize::from(is(node, "Seq Scan") && of_sms(node)));
            if whole > 0 {
                faults.push(format!("{} as {}: its plan reads agent_sms as a whole", kind.name, role.name()));
                break;
            }
        }
    }
    Ok(())
}

/// Costs come from an index alone: rows that had to be looked up in the table, of a hundred.
pub async fn heap_fetches(
    owner: &Client,
    size: &str,
    subjects: &mut Subjects,
    place: &str,
    faults: &mut Vec<String>,
) -> Result<Vec<Figure>> {
    let kind = KINDS.iter().find(|kind| kind.name == COST).context("costs are asked for")?;
    let mut figures = Vec::new();
    for role in kind.roles {
        let (mut rows, mut fetched, mut others) = (0.0, 0.0, String::new());
        for _ in 0..LOOKED_AT {
            let plan = plan(owner, kind, *role, &subjects.next()?, "analyze, timing off, ").await?;
            walk(&plan, &mut |node| {
                let number = |name: &str| node.get(name).and_then(Value::as_f64).unwrap_or_default();
                if is(node, "Index Only Scan") && of_sms(node) {
                    rows += number("Actual Rows") * number("Actual Loops").max(1.0);
                    fetched += number("Heap Fetches");
                } else if of_sms(node) || is(node, "Bitmap Heap Scan") {
                    let _ = write!(others, "{} ", node.get("Node Type").unwrap_or(&Value::Null));
                }
            });
        }
        let percent = 100.0 * fetched / f64::max(rows, 1.0);
        if !others.is_empty() || percent > HEAP_FETCHES_PERCENT {
            faults.push(format!(
                "{COST} as {}: {percent:.1} % of {rows} rows were looked up in the table; other ways to it: {others}",
                role.name()
            ));
        }
        let name = format!("sql.sms_{size}.{COST}.{}.heap_fetches_percent", role.name());
        let note = format!(
            "of {rows} rows that an index-only scan found, those looked up in the table, after a vacuum; {place}"
        );
        figures.push(
            Figure::new(name, percent, "%", LOOKED_AT as u64, &note).at_most(Some(HEAP_FETCHES_PERCENT), Some(0.0)),
        );
    }
    Ok(figures)
}

/// The plan of one question as JSON; nothing stays of what it did.
async fn plan(owner: &Client, kind: &Kind, role: Role, subject: &Subject, options: &str) -> Result<Value> {
    let mut sql = kind.sql.to_owned();
    for (place, argument) in kind.arguments(subject).iter().enumerate().rev() {
        let literal = argument.as_ref().map_or("null".to_owned(), |text| format!("'{}'", text.replace('\'', "''")));
        sql = sql.replace(&format!("${}", place + 1), &literal);
    }
    owner.batch_execute(&role.begin(subject)).await?;
    let found = owner.query_one(&format!("explain ({options}format json) {sql}"), &[]).await;
    owner.batch_execute("rollback").await?;
    let plan: Value = found?.get(0);
    let root = plan.pointer("/0/Plan").cloned().context("a plan in what explain says")?;
    ensure!(root.is_object(), "explain told of no plan for {}", kind.name);
    Ok(root)
}

fn is(node: &Value, kind: &str) -> bool {
    node.get("Node Type").and_then(Value::as_str) == Some(kind)
}

fn of_sms(node: &Value) -> bool {
    node.get("Relation Name").and_then(Value::as_str) == Some("agent_sms")
        && node.get("Node Type").is_some_and(|kind| kind != "ModifyTable")
}

fn walk(node: &Value, seen: &mut impl FnMut(&Value)) {
    seen(node);
    for child in node.get("Plans").and_then(Value::as_array).into_iter().flatten() {
        walk(child, seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_full_read_is_found_wherever_it_is_in_a_plan() {
        let plan = json!({"Node Type": "Limit", "Plans": [{"Node Type": "Sort", "Plans": [
            {"Node Type": "Seq Scan", "Relation Name": "agent_sms"}, {"Node Type": "Seq Scan", "Relation Name": "clients"}]}]});
        let mut found = 0;
        walk(&plan, &mut |node| found += usize::from(is(node, "Seq Scan") && of_sms(node)));
        assert_eq!(found, 1);
    }
}
