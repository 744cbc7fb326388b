//! What is asked: the monitoring queries of the first documents, word for word where they print one, and those of
//! docs/operate.md.

pub struct Question {
    pub name: &'static str,
    pub title: &'static str,
    pub sql: &'static str,
    /// Said where no row answers.
    pub if_none: &'static str,
    /// A view that need not be there, and what to do to have it.
    pub only_with: Option<&'static str>,
    pub needs: &'static str,
}

const fn of(name: &'static str, title: &'static str, sql: &'static str, if_none: &'static str) -> Question {
    Question { name, title, sql, if_none, only_with: None, needs: "" }
}

pub const QUESTIONS: &[Question] = &[
    of(
        "delivery-rates",
        "Messages of the last 24 hours by what became of them (success rate is 100 or 0 here, by the way it is asked: see the next)",
        "-- Check delivery rates (last 24h)
SELECT 
  channel,
  status,
  COUNT(*) as count,
  ROUND(100.0 * COUNT(*) FILTER (WHERE status = 'sent') / COUNT(*), 2) as success_rate
FROM message_delivery_log
WHERE created_at > NOW() - INTERVAL '24 hours'
GROUP BY channel, status;",
        "no message in 24 hours",
    ),
    of(
        "delivered",
        "Of the messages of the last 24 hours, how many of a hundred a carrier took, and how many arrived (promised: 95)",
        "select channel, count(*) as messages,
                round(100.0 * count(*) filter (where status in ('sent', 'delivered', 'read')) / count(*), 2) as accepted_percent,
                round(100.0 * count(*) filter (where status in ('delivered', 'read')) / count(*), 2) as arrived_percent
           from message_delivery_log
          where direction = 'outbound' and status <> 'suppressed' and fallback_of is null and created_at > now() - interval '24 hours'
          group by channel order by channel",
        "no message in 24 hours",
    ),
    of(
        "active-sessions",
        "Conversations that went on in the last 24 hours",
        "-- Check active sessions
SELECT COUNT(*) as active_sessions
FROM omnichannel_sessions
WHERE status IN ('active', 'follow_up')
  AND updated_at > NOW() - INTERVAL '24 hours';",
        "none",
    ),
    of(
        "continuity",
        "Messages of people in the last 7 days that went on with a conversation, of a hundred (promised: 90)",
        "select count(*) as messages, round(100.0 * count(*) filter (where exists (
                  select from conversation_messages b where b.session_id = m.session_id and b.seq < m.seq)) / nullif(count(*), 0), 2) as continued_percent
           from conversation_messages m where m.direction = 'inbound' and m.created_at > now() - interval '7 days'",
        "none",
    ),
    of(
        "cross-channel",
        "Conversations of the last 7 days over more than one channel besides the telephone",
        "select count(*) as conversations,
                round(100.0 * count(*) filter (where cardinality(array_remove(active_channels, 'voice')) > 1) / nullif(count(*), 0), 2) as cross_channel_percent
           from omnichannel_sessions where created_at > now() - interval '7 days'",
        "none",
    ),
    of(
        "summaries",
        "Seconds from a call's end until a carrier took its first message, last 24 hours (promised: 10)",
        "select count(*) as calls, round((percentile_cont(0.5) within group (order by took))::numeric, 2) as half_within,
                round((percentile_cont(0.95) within group (order by took))::numeric, 2) as p95_within,
                round((percentile_cont(0.99) within group (order by took))::numeric, 2) as p99_within
           from (select extract(epoch from min(a.finished_at) - c.ended_at) as took
                   from voice_calls c
                   join message_delivery_log l on l.call_id = c.id and l.purpose = 'call_summary'
                   join message_delivery_attempts a on a.delivery_id = l.id and a.outcome = 'accepted'
                  where c.ended_at > now() - interval '24 hours' group by c.id) calls",
        "none",
    ),
    Question {
        name: "promises",
        title: "What was promised of the whole, and whether it is kept",
        sql: "select * from v_success_metrics",
        if_none: "nothing to judge by",
        only_with: Some("public.v_success_metrics"),
        needs: "the view v_success_metrics comes with a newer migration",
    },
    of(
        "sms",
        "SMS of the last 30 days by agent, with cost, revenue and margin",
        "select d.name as deployment, t.name as agent, x.messages, x.delivered, x.failed, x.cost::text || ' ' || x.cost_currency as cost,
                x.revenue::text || ' ' || x.revenue_currency as revenue, x.margin::text as margin
           from (select deployment_id, cost_currency, revenue_currency, sum(messages) as messages, sum(delivered) as delivered, sum(failed) as failed,
                        trim_scale(sum(cost)) as cost, trim_scale(sum(revenue)) as revenue, trim_scale(sum(margin)) as margin
                   from v_agent_sms_days where starts_at >= now() - interval '30 days' group by 1, 2, 3) x
           join agent_deployments d on d.id = x.deployment_id left join agent_types t on t.id = d.agent_type_id
          order by x.messages desc limit 20",
        "no SMS in 30 days",
    ),
    of(
        "failed-sms",
        "SMS that failed in the last 7 days, by reason",
        "select provider, coalesce(failure_reason, 'no reason given') as reason, count(*) as messages, max(sent_at)::timestamp(0) as newest
           from v_agent_sms_enriched where status = 'failed' and sent_at >= now() - interval '7 days'
          group by 1, 2 order by 3 desc limit 20",
        "none failed",
    ),
    of(
        "unpriced-sms",
        "SMS of the last 30 days without a cost or a price (a list entered later still prices them)",
        "select c.slug as client, s.provider, count(*) filter (where s.cost is null) as no_cost, count(*) filter (where s.revenue is null) as no_price,
                min(s.sent_at)::timestamp(0) as oldest, max(s.sent_at)::timestamp(0) as newest
           from agent_sms s join clients c on c.id = s.client_id
          where (s.cost is null or s.revenue is null) and s.segments is not null and s.sent_at >= now() - interval '30 days'
          group by 1, 2 order by count(*) desc limit 20",
        "none",
    ),
    of(
        "errors",
        "What carriers said no with in the last 24 hours",
        "select provider, error_class, error_code, count(*) as attempts, max(created_at)::timestamp(0) as newest
           from message_delivery_attempts where error_class is not null and created_at > now() - interval '24 hours'
          group by 1, 2, 3 order by 4 desc limit 20",
        "nothing",
    ),
    of(
        "waiting",
        "What waits (near zero, and not for long)",
        "select 'deliveries due' as what, count(*), min(next_attempt_at)::timestamp(0) as oldest from message_delivery_log where next_attempt_at <= now()
         union all select 'notifications open', count(*), min(created_at)::timestamp(0) from call_notifications where status in ('open', 'released')
         union all select 'turns open', count(*), min(created_at)::timestamp(0) from conversation_turns where status in ('open', 'released')
         union all select 'messages unanswered', count(*), min(created_at)::timestamp(0) from conversation_messages
                           where direction = 'inbound' and handled_at is null
         union all select 'jobs pending', count(*), min(created_at)::timestamp(0) from jobs where status = 'pending'
         union all select 'dead letters', count(*), min(created_at)::timestamp(0) from dead_letters where replayed_at is null and dropped_at is null
         union all select 'sums of SMS not folded', count(*), min(created_at)::timestamp(0) from agent_sms_changes",
        "nothing",
    ),
    of(
        "alerts",
        "Open alerts",
        "select severity, kind, occurrences, last_at::timestamp(0) as newest, message from alerts where resolved_at is null order by last_at desc limit 20",
        "none",
    ),
    Question {
        name: "times",
        title: "Milliseconds in the database, beside what was promised",
        sql: "select question, calls, mean_ms, worst_ms, promise_ms, aim_ms, verdict from private.v_statement_times",
        if_none: "nothing was asked yet",
        only_with: Some("private.v_statement_times"),
        needs: "create extension pg_stat_statements, then select private.watch_statement_times()",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The document that prints the monitoring queries is not here; what it prints is, for the tests of the database.
    #[test]
    fn the_printed_queries_are_asked_word_for_word() {
        let printed = include_str!("../../../tests/sql/seed_statements.sql");
        for name in ["delivery-rates", "active-sessions"] {
            let question = QUESTIONS.iter().find(|question| question.name == name);
            assert!(question.is_some_and(|question| printed.contains(question.sql)), "{name}");
        }
    }
}
