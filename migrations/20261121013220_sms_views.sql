-- 20261121013220_sms_views.sql
-- What people and pages read of SMS and calls: the message with its client and agent, both in one timeline, sums a day, and the indexes for it.
-- Safe to run again. Builds two indexes on agent_sms (on a large table a while, locking it) and takes the one it replaces away.
-- Undo: drop the views, build idx_agent_sms_deployment_sent, drop idx_agent_sms_deployment_costs, idx_agent_sms_sent and
-- idx_agent_calls_started, reset the storage parameters.

-- Costs of a period are summed up from the index alone. The status is not in it: it changes after the row is written, and a change of
-- nothing that is indexed costs no entry in any index.
create index if not exists idx_agent_sms_deployment_costs on public.agent_sms (deployment_id, sent_at desc)
  include (client_id, segments, cost, cost_currency, revenue, revenue_currency, margin);
drop index if exists public.idx_agent_sms_deployment_sent;
-- For whoever asks for the newest of all that they may see, or for what failed of late, and names neither client nor deployment.
create index if not exists idx_agent_sms_sent on public.agent_sms (sent_at desc);
create index if not exists idx_agent_calls_started on public.agent_calls (started_at desc);
-- Room on the page for the newer status; and vacuumed by rows written rather than by a share of the table, which of tens of millions
-- would be months: only then is the index enough.
alter table public.agent_sms set (fillfactor = 85, autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 5000,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_scale_factor = 0.01);
-- Rows here live for a minute: what they leave behind is cleared often.
alter table public.agent_sms_changes set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 5000);

create or replace view public.v_agent_sms_enriched with (security_invoker = true) as
  select s.id, s.client_id, c.slug as client_slug, c.brand as client_name, s.deployment_id, d.name as deployment_name, t.name as agent_type_name,
         t.display_name as agent_type_display_name, s.call_id, s.prospect_id, p.full_name as prospect_name, s.sequence_id, q.name as sequence_name,
         s.session_id, s.delivery_id, s.phone_number, s.message_content, s.encoding, s.segments, s.status, s.provider, s.provider_status,
         s.provider_message_sid, s.sent_at, s.delivered_at, s.failed_at, s.replied_at, s.failure_reason, s.unit_cost, s.cost, s.cost_currency,
         s.unit_revenue, s.revenue, s.revenue_currency, s.fx_rate, s.fx_date, s.margin, s.metadata, s.created_at, s.updated_at
    from public.agent_sms s
    left join public.clients c on c.id = s.client_id
    left join public.agent_deployments d on d.id = s.deployment_id
    left join public.agent_types t on t.id = d.agent_type_id
    left join public.prospects p on p.id = s.prospect_id
    left join public.sequences q on q.id = s.sequence_id;
comment on view public.v_agent_sms_enriched is
  'SMS with client, agent, prospect and sequence. Page by (sent_at, id): where deployment_id = ... and (sent_at, id) < (...) order by sent_at desc, id desc.';

create or replace view public.v_agent_communications with (security_invoker = true) as
  select x.kind, x.id, x.client_id, c.slug as client_slug, c.brand as client_name, x.deployment_id, d.name as deployment_name,
         t.name as agent_type_name, x.occurred_at, x.direction, x.status, x.phone_number, x.content, x.duration_seconds, x.segments, x.call_id,
         x.prospect_id, x.sequence_id, x.session_id, x.cost, x.cost_currency, x.revenue, x.revenue_currency, x.margin
    from (
      select 'call'::text as kind, a.id, a.client_id, a.deployment_id, a.started_at as occurred_at, a.direction, a.status, a.phone_number,
             null::text as content, a.duration_seconds, null::smallint as segments, a.id as call_id, a.prospect_id, a.sequence_id, a.session_id,
             a.cost, a.cost_currency, a.revenue, a.revenue_currency, a.margin
        from public.agent_calls a
      union all
      select 'sms'::text, s.id, s.client_id, s.deployment_id, s.sent_at, 'outbound'::text, s.status, s.phone_number, s.message_content, null::integer,
             s.segments, s.call_id, s.prospect_id, s.sequence_id, s.session_id, s.cost, s.cost_currency, s.revenue, s.revenue_currency, s.margin
        from public.agent_sms s
    ) x
    left join public.clients c on c.id = x.client_id
    left join public.agent_deployments d on d.id = x.deployment_id
    left join public.agent_types t on t.id = d.agent_type_id;
comment on view public.v_agent_communications is
  'Calls and SMS in one timeline. Page by (occurred_at, id): where deployment_id = ... and (occurred_at, id) < (...) order by occurred_at desc, id desc.';

create or replace view public.v_agent_sms_days with (security_invoker = true) as
  select x.client_id, x.deployment_id, x.starts_at, x.cost_currency, x.revenue_currency, sum(x.messages)::bigint as messages,
         sum(x.pending)::bigint as pending, sum(x.sent)::bigint as sent, sum(x.delivered)::bigint as delivered, sum(x.failed)::bigint as failed,
         sum(x.cancelled)::bigint as cancelled, sum(x.accepted)::bigint as accepted, sum(x.replied)::bigint as replied,
         sum(x.segments)::bigint as segments, sum(x.cost)::numeric(20,6) as cost, sum(x.revenue)::numeric(20,6) as revenue,
         sum(x.margin)::numeric(20,6) as margin, sum(x.without_margin)::bigint as without_margin
    from (
      select r.client_id, r.deployment_id, r.starts_at, r.cost_currency, r.revenue_currency, r.messages, r.pending, r.sent, r.delivered, r.failed,
             r.cancelled, r.accepted, r.replied, r.segments, r.cost, r.revenue, r.margin, r.without_margin
        from public.agent_sms_rollups r where r.grain = 'day'
      union all
      select c.client_id, c.deployment_id, date_trunc('day', c.starts_at, 'UTC'), c.cost_currency, c.revenue_currency, c.messages, c.pending, c.sent,
             c.delivered, c.failed, c.cancelled, c.accepted, c.replied, c.segments, c.cost, c.revenue, c.margin, c.without_margin
        from public.agent_sms_changes c
    ) x
   group by x.client_id, x.deployment_id, x.starts_at, x.cost_currency, x.revenue_currency
  having sum(x.messages) <> 0;
comment on view public.v_agent_sms_days is 'SMS summed up a day (UTC), deployment and pair of currencies: exact, and as quick with many rows as with few.';

do $$
declare
  v_column record;
begin
  for v_column in
    select v.view, a.attname as name, coalesce(
             case a.attname
               when 'kind' then 'call or sms.'
               when 'client_slug' then 'Short name of the client.'
               when 'client_name' then 'The client''s brand.'
               when 'deployment_name' then 'As the client calls it.'
               when 'agent_type_name' then 'louis, arthur, alexandra, ...; null: no kind was given.'
               when 'agent_type_display_name' then 'As people are shown it.'
               when 'call_id' then 'In agent_calls: of a call itself, of an SMS the call that it follows.'
               when 'prospect_id' then 'In prospects; null: nobody that a campaign reached for.'
               when 'prospect_name' then 'As the client calls them.'
               when 'sequence_id' then 'In sequences; null: stands alone.'
               when 'sequence_name' then 'Of the series of messages that it belongs to.'
               when 'session_id' then 'In omnichannel_sessions; null: of no conversation of ours.'
               when 'content' then 'Text of the SMS; a call has none here.'
               when 'starts_at' then 'Beginning of the day, UTC.'
             end,
             col_description(o.oid, o.attnum), 'As in agent_sms.') as says
      from (values ('v_agent_sms_enriched', 'agent_sms'), ('v_agent_communications', 'agent_sms'), ('v_agent_sms_days', 'agent_sms_rollups')) v (view, base)
      join pg_catalog.pg_attribute a on a.attrelid = format('public.%I', v.view)::regclass and a.attnum > 0
      left join lateral (select b.attrelid as oid, b.attnum from pg_catalog.pg_attribute b
                          where b.attrelid = format('public.%I', v.base)::regclass and b.attname = a.attname) o on true
  loop
    execute format('comment on column public.%I.%I is %L', v_column.view, v_column.name, v_column.says);
  end loop;
end
$$;
revoke all on public.v_agent_sms_enriched, public.v_agent_communications, public.v_agent_sms_days from public, anon, authenticated;
grant select on public.v_agent_sms_enriched, public.v_agent_communications, public.v_agent_sms_days to authenticated, service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013220'::text $$;

notify pgrst, 'reload schema';
