//! The queues of a stage, created when they are not there.

use anyhow::Result;

use super::stage::StageConfig;
use crate::progress;
use crate::setup::Tools;

/// The longest that the platform keeps a message, 14 days: an outage of the database is waited for in the queues.
const RETENTION_S: &str = "1209600";

pub fn ensure(tools: &Tools, config: &StageConfig) -> Result<()> {
    let wanted = config.queues()?;
    let there = existing(tools)?;
    let missing: Vec<&String> = wanted.iter().filter(|queue| !there.contains(queue)).collect();
    if missing.is_empty() {
        progress::done(&format!("{} queues are there", wanted.len()));
        return Ok(());
    }
    for queue in missing {
        let create = || tools.npm.wrangler(&format!("create queue {queue}")).args(["queues", "create", queue]);
        if let Err(refused) = create().args(["--message-retention-period-secs", RETENTION_S]).run() {
            progress::warn(&format!("{queue} cannot keep messages for 14 days, as a free plan cannot: {refused:#}"));
            create().run()?;
        }
    }
    Ok(())
}

/// Names in wrangler's table, over all of its pages.
fn existing(tools: &Tools) -> Result<Vec<String>> {
    const PAGES: u32 = 100;
    let mut names: Vec<String> = Vec::new();
    for page in 1..=PAGES {
        let call = tools.npm.wrangler("list the queues").args(["queues", "list", "--page", &page.to_string()]);
        let found = names_in(&call.read()?);
        let new: Vec<String> = found.into_iter().filter(|name| !names.contains(name)).collect();
        if new.is_empty() {
            break;
        }
        names.extend(new);
    }
    Ok(names)
}

/// The second cell of each row that begins with an id (32 hexadecimal digits).
fn names_in(table: &str) -> Vec<String> {
    table
        .lines()
        .filter_map(|line| {
            let mut cells = line.split('│').map(str::trim).filter(|cell| !cell.is_empty());
            let id = cells.next()?;
            (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .then(|| cells.next().map(str::to_owned))?
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_the_table_that_wrangler_prints() {
        let table = "┌─┬─┐\n│ id │ name │\n├─┼─┤\n│ 0123456789abcdef0123456789abcdef │ sms-inbound │ 2026 │\n└─┴─┘";
        assert_eq!(names_in(table), ["sms-inbound"]);
        assert!(names_in("no queues").is_empty());
    }
}
