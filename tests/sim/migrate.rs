//! Applies migrations as the Supabase CLI does, to any database: the local world's, or an operator's.
//!
//! Each file is one transaction and is recorded in `supabase_migrations.schema_migrations` (version, name, statements),
//! so that `supabase db push` and `cargo xtask migrate` agree on what is done.

use std::fmt;
use std::path::{Path, PathBuf};

use tokio_postgres::{Client, GenericClient};

use crate::error::{Context, Result, Trouble};

mod split;

pub use split::{Statement, split};

/// One file `<version>_<name>.sql`.
#[derive(Clone, Debug)]
pub struct Migration {
    pub version: String,
    pub name: String,
    pub path: PathBuf,
    pub sql: String,
}

/// What `apply` did, or with `dry_run` would do; versions in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub applied: Vec<String>,
    pub skipped: Vec<String>,
    /// Recorded in the database, but there is no such file.
    pub unknown: Vec<String>,
    /// Applied once with other text than the file has now. A shipped file is never edited: write a new one.
    pub changed: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} applied, {} already there", self.applied.len(), self.skipped.len())?;
        if !self.changed.is_empty() {
            write!(f, "; edited after they were applied: {}", self.changed.join(", "))?;
        }
        if !self.unknown.is_empty() {
            write!(f, "; in the database but not in the folder: {}", self.unknown.join(", "))?;
        }
        Ok(())
    }
}

/// Reads `dir/<digits>_<name>.sql`, in the order they apply.
pub fn read(dir: &Path) -> Result<Vec<Migration>> {
    let entries = std::fs::read_dir(dir).context(format!("cannot read the migrations in {}", dir.display()))?;
    let mut migrations = Vec::new();
    for entry in entries {
        let path = entry.context("cannot list the migrations")?.path();
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((version, name)) = file.strip_suffix(".sql").and_then(|stem| stem.split_once('_')) else {
            continue;
        };
        if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let sql = std::fs::read_to_string(&path).context(format!("cannot read {}", path.display()))?;
        migrations.push(Migration { version: version.to_owned(), name: name.to_owned(), sql, path });
    }
    migrations.sort_by(|a, b| a.version.cmp(&b.version).then_with(|| a.name.cmp(&b.name)));
    for pair in migrations.windows(2) {
        if let [one, two] = pair
            && one.version == two.version
        {
            return Err(Trouble::new(format!(
                "{} and {} share version {}: give each migration a version of its own (YYYYMMDDHHMMSS)",
                one.path.display(),
                two.path.display(),
                one.version
            )));
        }
    }
    Ok(migrations)
}

/// Runs a file that is no migration (the local bootstrap), as one transaction and without a record.
pub async fn run_file(client: &mut Client, path: &Path) -> Result<()> {
    let sql = std::fs::read_to_string(path).context(format!("cannot read {}", path.display()))?;
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    execute(&transaction, path, &split(&sql)).await?;
    transaction.commit().await.context(format!("cannot commit {}", path.display()))
}

/// Applies what is missing. With `dry_run` nothing is written.
pub async fn apply(client: &mut Client, migrations: &[Migration], dry_run: bool) -> Result<Report> {
    // Two people deploying at once wait for each other; the lock goes with the connection.
    client
        .batch_execute("select pg_advisory_lock(hashtext('supabase_migrations.schema_migrations'))")
        .await
        .context("cannot take the migration lock")?;
    let outcome = apply_locked(client, migrations, dry_run).await;
    let unlocked = client
        .batch_execute("select pg_advisory_unlock(hashtext('supabase_migrations.schema_migrations'))")
        .await
        .context("cannot release the migration lock");
    let report = outcome?;
    unlocked?;
    Ok(report)
}

async fn apply_locked(client: &mut Client, migrations: &[Migration], dry_run: bool) -> Result<Report> {
    if !dry_run {
        client
            .batch_execute(
                "create schema if not exists supabase_migrations;
                 create table if not exists supabase_migrations.schema_migrations (
                   version text not null primary key, statements text[], name text);
                 alter table supabase_migrations.schema_migrations
                   add column if not exists statements text[], add column if not exists name text",
            )
            .await
            .context("cannot make the table of applied migrations: does this role own the database?")?;
    }
    let mut recorded = recorded(client).await?;
    let mut report = Report::default();
    for migration in migrations {
        let version = migration.version.clone();
        if let Some(position) = recorded.iter().position(|(known, _)| *known == version) {
            let (_, statements) = recorded.swap_remove(position);
            let now: Vec<String> = split(&migration.sql).into_iter().map(|statement| statement.sql).collect();
            if statements.is_some_and(|then| then != now) {
                report.changed.push(version.clone());
            }
            report.skipped.push(version);
            continue;
        }
        if !dry_run {
            apply_one(client, migration).await?;
        }
        report.applied.push(version);
    }
    report.unknown = recorded.into_iter().map(|(version, _)| version).collect();
    report.unknown.sort();
    Ok(report)
}

async fn recorded(client: &Client) -> Result<Vec<(String, Option<Vec<String>>)>> {
    let exists: bool = client
        .query_one("select to_regclass('supabase_migrations.schema_migrations') is not null", &[])
        .await
        .context("cannot ask for the table of applied migrations")?
        .get(0);
    if !exists {
        return Ok(Vec::new());
    }
    let rows = client
        .query("select version, statements from supabase_migrations.schema_migrations", &[])
        .await
        .context("cannot read the applied migrations")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn apply_one(client: &mut Client, migration: &Migration) -> Result<()> {
    let statements = split(&migration.sql);
    let transaction = client.transaction().await.context("cannot begin a transaction")?;
    execute(&transaction, &migration.path, &statements).await?;
    let texts: Vec<String> = statements.into_iter().map(|statement| statement.sql).collect();
    transaction
        .execute(
            "insert into supabase_migrations.schema_migrations (version, statements, name) values ($1, $2, $3)",
            &[&migration.version, &texts, &migration.name],
        )
        .await
        .context(format!("cannot record {}", migration.path.display()))?;
    transaction.commit().await.context(format!("cannot commit {}", migration.path.display()))
}

async fn execute(client: &impl GenericClient, path: &Path, statements: &[Statement]) -> Result<()> {
    for statement in statements {
        client.batch_execute(&statement.sql).await.map_err(|error| explain(path, statement, &error))?;
    }
    Ok(())
}

fn explain(path: &Path, statement: &Statement, error: &tokio_postgres::Error) -> Trouble {
    let Some(database) = error.as_db_error() else {
        return Trouble::new(format!("{}:{}: {error}", path.display(), statement.line));
    };
    let inside = match database.position() {
        Some(tokio_postgres::error::ErrorPosition::Original(at)) => {
            let before = statement.sql.chars().take(*at as usize);
            before.filter(|c| *c == '\n').count()
        }
        _ => 0,
    };
    let context = database.where_().map(|at| format!("\n  at {at}")).unwrap_or_default();
    let hint = database.hint().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    Trouble::new(format!(
        "{}:{}: {} ({}); nothing of this file was kept{hint}{context}",
        path.display(),
        statement.line + inside,
        database.message(),
        database.code().code(),
    ))
}
