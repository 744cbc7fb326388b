-- 20261121013310_statement_times.sql
-- For operators: what the questions of agent_sms take on this database, beside what was promised of them. The times are kept by the
-- extension pg_stat_statements (Supabase has it); where it is not there, there is no view, and nothing else is missing.
-- Safe to run again. Undo: drop the view and the function.
create or replace function private.watch_statement_times() returns boolean
language plpgsql set search_path = '' as $$
declare
  v_schema text := (select n.nspname from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
                     where e.extname = 'pg_stat_statements');
begin
  if v_schema is null then
    return false;
  end if;
  execute format($view$
    create or replace view private.v_statement_times as
    select p.question, p.promise_ms, p.aim_ms, coalesce(sum(s.calls), 0)::bigint as calls,
           round((sum(s.total_exec_time) / nullif(sum(s.calls), 0))::numeric, 3) as mean_ms,
           round(max(s.max_exec_time)::numeric, 3) as worst_ms,
           case when sum(s.calls) is null then 'not asked yet'
                when sum(s.total_exec_time) / sum(s.calls) <= p.aim_ms then 'as aimed at'
                when sum(s.total_exec_time) / sum(s.calls) <= p.promise_ms then 'as promised'
                when p.promise_ms is null then 'slower than aimed at'
                else 'slower than promised' end as verdict
      from (values
        (1, 'figures of SMS: get_sms_metrics', '\mget_sms_metrics\M', 100::numeric, 15::numeric),
        (2, 'the newest SMS: v_agent_sms_enriched', '\mv_agent_sms_enriched\M', 10, 2),
        (3, 'the status of an SMS is updated', '\mupdate\s+("?public"?\.)?"?agent_sms\M|\mupdate_agent_sms_status\M', 5, 1),
        (4, 'costs are summed over the rows', '\msum\([^)]*\m(cost|revenue|margin)\M.*\mfrom\s+("?public"?\.)?"?agent_sms\M', 50, 10),
        (5, 'an SMS is written', '\minsert\s+into\s+("?public"?\.)?"?agent_sms\M|\mlog_agent_sms\M', null, 1),
        (6, 'reports of deliveries come in: record_delivery_events', '\mrecord_delivery_events\M', null, 2)
      ) p (place, question, pattern, promise_ms, aim_ms)
      left join %I.pg_stat_statements s
        on s.query ~* p.pattern and s.query !~* '^\s*(create|alter|comment|explain|copy|vacuum|analyze)\M'
       and s.dbid = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
     group by p.place, p.question, p.promise_ms, p.aim_ms
     order by p.place $view$, v_schema);
  comment on view private.v_statement_times is
    'Times of the questions of agent_sms since pg_stat_statements was last reset, in the server, beside what was promised and is aimed at. For operators: it shows what all roles asked.';
  revoke all on private.v_statement_times from public, anon, authenticated;
  grant select on private.v_statement_times to service_role;
  return true;
end
$$;
comment on function private.watch_statement_times is
  'Makes private.v_statement_times where the extension pg_stat_statements is there; false: it is not. To be called again after it was installed.';
revoke execute on function private.watch_statement_times() from public, anon, authenticated;
grant execute on function private.watch_statement_times() to service_role;
select private.watch_statement_times();

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013310'::text $$;

notify pgrst, 'reload schema';
