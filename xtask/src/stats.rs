//! `cargo xtask stats`: how it goes, in tables: what is delivered, what failed, who is being talked with, what waits, and how long
//! the database takes. The questions are those of the first documents and of docs/operate.md.

mod questions;
mod table;

use anyhow::{Result, bail};
use ihuza_core::redact;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::migrate::connection;
use questions::{QUESTIONS, Question};

#[derive(clap::Args)]
#[command(after_help = "\
Nothing is written. Numbers of people are masked, and no text is shown. Live times of statements need the extension
pg_stat_statements.")]
pub struct Options {
    #[command(flatten)]
    database: connection::Place,
    /// Only these; may be given several times.
    #[arg(long, value_name = "QUESTION", value_parser = QUESTIONS.iter().map(|question| question.name).collect::<Vec<_>>())]
    only: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    options.database.run(async |client| {
        client.batch_execute("set default_transaction_read_only = on; set timezone = 'UTC'").await?;
        let mut unanswered = Vec::new();
        for question in QUESTIONS {
            if !options.only.is_empty() && !options.only.iter().any(|name| name == question.name) {
                continue;
            }
            println!("\n{}", question.title);
            match answer(&client, question).await? {
                Answer::Rows(lines) => lines.iter().for_each(|line| println!("  {line}")),
                Answer::NotThere => println!("  not kept here: {}", question.needs),
                Answer::Refused(why) => {
                    println!("  could not be answered: {why}");
                    unanswered.push(question.name);
                }
            }
        }
        if !unanswered.is_empty() {
            bail!(
                "not answered: {}. Is every migration applied (cargo xtask migrate --dry-run)?",
                unanswered.join(", ")
            );
        }
        Ok(())
    })
}

enum Answer {
    Rows(Vec<String>),
    /// What it asks of is optional, and absent.
    NotThere,
    Refused(String),
}

async fn answer(client: &Client, question: &Question) -> Result<Answer> {
    if let Some(view) = question.only_with {
        let there: bool = client.query_one("select to_regclass($1::text) is not null", &[&view]).await?.get(0);
        if !there {
            return Ok(Answer::NotThere);
        }
    }
    let messages = match client.simple_query(question.sql).await {
        Ok(messages) => messages,
        Err(error) => match error.as_db_error() {
            // Postgres' detail may hold a row.
            Some(said) => return Ok(Answer::Refused(redact::scrub(said.message()))),
            None => return Err(error.into()),
        },
    };
    let (mut names, mut rows) = (Vec::new(), Vec::new());
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                names = columns.iter().map(|column| column.name().replace('_', " ")).collect();
            }
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|place| redact::scrub(row.get(place).unwrap_or("-")));
                rows.push(cells.collect());
            }
            _ => {}
        }
    }
    Ok(Answer::Rows(table::lines(&names, &rows, question.if_none)))
}
