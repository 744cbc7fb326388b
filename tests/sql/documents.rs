//! The questions that docs/sms-tracking.md prints, asked as printed: by the service and by a member, of a database that has an answer.

use crate::support::{Db, refusal, root};

fn document(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// What stands between ```sql and ``` in a text.
fn printed(text: &str) -> Vec<String> {
    let blocks = text.split("```sql\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().trim().trim_end_matches(';').to_owned()).collect()
}

#[tokio::test]
async fn every_question_of_the_document_is_answered() {
    let db = Db::new().await;
    let member = "0a000000-0000-4000-8000-000000000001";
    db.run(&format!(
        "insert into public.client_members (client_id, user_id) select id, '{member}' from public.clients where is_default;
         update public.clients set slug = 'easymo' where is_default;
         insert into public.agent_deployments (id, client_id, agent_type_id, name)
         select '0d000000-0000-4000-8000-000000000001', c.id, t.id, 'louis-kigali' from public.clients c, public.agent_types t where c.is_default and t.name = 'louis';
         insert into public.agent_calls (id, client_id, deployment_id, phone_number, started_at, duration_seconds, cost, cost_currency)
         select '0c000000-0000-4000-8000-000000000001', client_id, id, '+250788123456', now() - interval '1 hour', 61, 0.02, 'USD'
           from public.agent_deployments where name = 'louis-kigali';
         insert into public.agent_sms (deployment_id, call_id, phone_number, message_content, provider_message_sid, status, failure_reason, sent_at)
         select d.id, '0c000000-0000-4000-8000-000000000001', '+250788123456', 'Muraho', 'SM' || n, case n when 1 then 'failed' else 'sent' end,
                case n when 1 then '30003' end, case n when 3 then date_trunc('month', now()) - interval '1 day' else now() - interval '1 hour' end
           from public.agent_deployments d, generate_series(1, 3) n where d.name = 'louis-kigali';",
    ))
    .await;
    let questions = printed(&document("sms-tracking.md"));
    assert!(questions.len() >= 9, "{questions:?}");
    for question in &questions {
        let sql = format!("select count(*) from ({question}) q");
        let row = db.service.query_one(&sql, &[]).await;
        let rows: i64 = row.unwrap_or_else(|error| panic!("{question}: {}", refusal(&error).message)).get(0);
        assert!(rows > 0, "no answer to {question}");
        // The member sees the same, for all of it is one client's.
        let claims = format!(r#"{{"sub": "{member}", "role": "authenticated"}}"#);
        db.admin.batch_execute("begin; set local role authenticated").await.unwrap();
        db.admin.query("select set_config('request.jwt.claims', $1, true)", &[&claims]).await.unwrap();
        let row = db.admin.query_one(&sql, &[]).await;
        let seen: i64 =
            row.unwrap_or_else(|error| panic!("{question} as a member: {}", refusal(&error).message)).get(0);
        db.admin.batch_execute("rollback").await.unwrap();
        assert_eq!(seen, rows, "as a member: {question}");
    }
}

#[tokio::test]
async fn messages_are_priced_again_as_the_operators_guide_says() {
    let db = Db::new().await;
    db.run(
        "insert into public.agent_sms (client_id, phone_number, message_content, provider_message_sid, status, sent_at)
         select id, '+250788123456', repeat('a', 200), 'SM1', 'sent', '2026-12-01 10:00Z' from public.clients where is_default;
         update public.clients set slug = 'easymo' where is_default;",
    )
    .await;
    assert_eq!(db.value("select to_jsonb(revenue is null and segments = 2) from public.agent_sms").await, true);
    let guide = printed(&document("operate.md"));
    let update = guide.iter().find(|sql| sql.starts_with("update agent_sms set unit_revenue")).unwrap();
    db.service.batch_execute(update).await.unwrap();
    let priced = db
        .value("select jsonb_build_array(revenue::text, revenue_currency, revenue_source) from public.agent_sms")
        .await;
    assert_eq!(priced, serde_json::json!(["40.000000", "RWF", "price_list"]));
}

#[tokio::test]
async fn what_operators_are_told_of_prices_runs_and_does_what_it_says() {
    let db = Db::new().await;
    db.run("update public.clients set slug = 'easymo' where is_default").await;
    let guide = document("operate.md");
    let (_, section) = guide.split_once("## Prices, rates and bills\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let statements = printed(section);
    assert!(statements.len() >= 5, "{statements:?}");
    for statement in &statements {
        if let Err(error) = db.admin.batch_execute(statement).await {
            panic!("{statement}: {}", refusal(&error).message);
        }
    }
    // The client's own price for Airtel counts before the general one, and no other number has it.
    let price = |number: &str| {
        format!(
            "select to_jsonb(trim_scale(p.price)) from public.clients c, private.price_of(c.id, 'revenue', 'mtn', 'segment', '{number}', '2026-12-02') p
              where c.slug = 'easymo'"
        )
    };
    assert_eq!(db.value(&price("+250722123456")).await, 20);
    assert_eq!(db.value(&price("+250788123456")).await, 18);
    assert_eq!(
        db.value("select settings -> 'sms_retention_months' from public.clients where slug = 'easymo'").await,
        60
    );
}
