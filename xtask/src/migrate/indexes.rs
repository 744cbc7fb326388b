//! `migrate --indexes`: indexes of pending migrations, built before them and without blocking writers.
//!
//! A migration is one transaction, in which `concurrently` is not allowed; its `create index if not exists` then finds
//! the index that was built here.

use anyhow::{Context, Result};
use ihuza_sim::migrate::{self, Migration};
use tokio_postgres::Client;

use crate::progress::{self, Step};

pub async fn build(client: &mut Client, migrations: &[Migration], dry_run: bool) -> Result<()> {
    let pending = migrate::apply(client, migrations, true).await?.applied;
    let mut built = 0;
    for migration in migrations.iter().filter(|migration| pending.contains(&migration.version)) {
        for statement in migrate::split(&migration.sql) {
            let Some(index) = Index::of(&statement.sql) else {
                continue;
            };
            if !client_has(client, &index.table).await? {
                progress::note(&format!("{}: its table {} comes with the migration", index.name, index.table));
            } else if is_valid(client, &index).await? {
                progress::done(&format!("{} is there", index.name));
            } else if dry_run {
                progress::note(&format!("would build {} on {}", index.name, index.table));
            } else {
                index.build(client).await?;
                built += 1;
            }
        }
    }
    println!("{built} indexes built");
    Ok(())
}

/// `create [unique] index if not exists <name> on [only] <table> …`
#[derive(Debug, PartialEq)]
struct Index {
    name: String,
    table: String,
    concurrent: String,
}

impl Index {
    fn of(statement: &str) -> Option<Self> {
        const HEAD: &str = "index if not exists ";
        // Comments of the file stand before the statement they explain.
        let code: Vec<&str> = statement.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
        let code = code.join("\n");
        let code = code.trim();
        let lower = code.to_ascii_lowercase();
        if !lower.starts_with("create index") && !lower.starts_with("create unique index") {
            return None;
        }
        let at = lower.find(HEAD)?;
        let mut words = code.get(at + HEAD.len()..)?.split([' ', '\n', '(']).filter(|word| !word.is_empty());
        let name = words.next()?.to_owned();
        let table = words.find(|word| !matches!(word.to_ascii_lowercase().as_str(), "on" | "only"))?.to_owned();
        let concurrent =
            format!("{}index concurrently if not exists {}", code.get(..at)?, code.get(at + HEAD.len()..)?);
        Some(Self { name, table, concurrent })
    }

    /// An index lives in the schema of its table.
    fn qualified(&self) -> String {
        match self.table.split_once('.') {
            Some((schema, _)) => format!("{schema}.{}", self.name),
            None => self.name.clone(),
        }
    }

    async fn build(&self, client: &Client) -> Result<()> {
        let step = Step::start(&format!("build {} on {}", self.name, self.table), None);
        // A build that broke off leaves an invalid index behind, which `if not exists` would take for a good one.
        let leftover = format!("drop index concurrently if exists {}", self.qualified());
        client.batch_execute(&leftover).await.with_context(|| format!("could not drop a broken {}", self.name))?;
        client.batch_execute(&self.concurrent).await.with_context(|| format!("could not build {}", self.name))?;
        step.finish();
        Ok(())
    }
}

async fn client_has(client: &Client, table: &str) -> Result<bool> {
    let row = client.query_one("select to_regclass($1) is not null", &[&table]).await;
    Ok(row.context("could not look for a table")?.get(0))
}

async fn is_valid(client: &Client, index: &Index) -> Result<bool> {
    let sql = "select exists (select from pg_index where indexrelid = to_regclass($1) and indisvalid)";
    let row = client.query_one(sql, &[&index.qualified()]).await;
    Ok(row.context("could not look for an index")?.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_statement_is_turned_into_one_that_blocks_nobody() {
        let found = Index::of("-- why\ncreate unique index if not exists a_b_idx on public.a (b) where c;");
        let expected = Index {
            name: "a_b_idx".into(),
            table: "public.a".into(),
            concurrent: "create unique index concurrently if not exists a_b_idx on public.a (b) where c;".into(),
        };
        assert_eq!(found, Some(expected));
        assert_eq!(Index::of("create table if not exists public.a (b int)"), None);
    }
}
