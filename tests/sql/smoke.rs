//! The walk through every RPC that `smoke.sql` is, without psql.

use crate::support::{Db, beside, refusal};

#[tokio::test]
async fn the_walk_through_every_rpc_is_green() {
    let db = Db::new().await;
    let file = std::fs::read_to_string(beside("smoke.sql")).unwrap();
    // Lines of psql's own language become empty, so that the server counts the same lines.
    let sql: String =
        file.lines().map(|line| if line.starts_with('\\') { "\n".to_owned() } else { format!("{line}\n") }).collect();
    if let Err(error) = db.admin.batch_execute(&sql).await {
        let position = match error.as_db_error().and_then(|error| error.position()) {
            Some(tokio_postgres::error::ErrorPosition::Original(at)) => {
                let before = sql.chars().take(*at as usize);
                format!(" in line {}", 1 + before.filter(|c| *c == '\n').count())
            }
            _ => String::new(),
        };
        panic!("smoke.sql{position}: {}", refusal(&error).message);
    }
    for table in ["voice_calls", "profiles", "message_delivery_log"] {
        assert_eq!(db.count(&format!("select count(*) from public.{table}")).await, 0, "it leaves nothing behind");
    }
}
