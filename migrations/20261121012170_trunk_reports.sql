-- 20261121012170_trunk_reports.sql
-- How each trunk is, as the relays last said; a relay that says nothing any more is not believed for long.
-- Safe to run again. Locks only a new table. Undo: drop the table and the functions; health_check as it was before.
create table if not exists public.trunk_reports (
  trunk text not null,
  relay text not null,
  state text not null,
  reason text,
  active_calls integer not null default 0,
  reported_at timestamptz not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint trunk_reports_pkey primary key (trunk, relay),
  constraint trunk_reports_trunk_is_a_name check (trunk ~ '^[a-z][a-z0-9_]{0,59}$'),
  constraint trunk_reports_relay_is_short check (length(relay) between 1 and 100),
  constraint trunk_reports_state_is_known check (state in ('active', 'down')),
  constraint trunk_reports_active_calls_are_not_negative check (active_calls >= 0)
);
do $$
begin
  perform private.require_columns('public.trunk_reports', '{
    "trunk": "text", "relay": "text", "state": "text", "reason": "text", "active_calls": "integer", "reported_at": "timestamp with time zone",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
comment on table public.trunk_reports is 'The last word of each relay on each trunk.';
comment on column public.trunk_reports.trunk is 'Name in the relay''s configuration, such as mtn_sip.';
comment on column public.trunk_reports.relay is 'Which relay says so.';
comment on column public.trunk_reports.state is 'active: the trunk answers; down: it does not. Health says stale when the report is old.';
comment on column public.trunk_reports.reason is 'Of down, as a code.';
comment on column public.trunk_reports.active_calls is 'Calls on the trunk when it was reported.';
comment on column public.trunk_reports.reported_at is 'When the report came, by our clock.';

create or replace function private.trunk_health(p_stale interval, p_now timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return '{"mtn_sip": {"status": "down", "age_seconds": null, "reason": "never_reported"}}'::jsonb || (
    select coalesce(jsonb_object_agg(t.trunk, jsonb_build_object('status', t.status, 'age_seconds', t.age, 'reason', t.reason, 'relay', t.relay, 'active_calls', t.active_calls)), '{}')
      from (
        -- Of several relays the best counts: a trunk that one of them can use is there.
        select distinct on (r.trunk) r.trunk, r.relay, r.reason, r.active_calls,
               case when r.state = 'down' then 'down' when r.reported_at < p_now - p_stale then 'stale' else 'active' end as status,
               greatest(extract(epoch from p_now - r.reported_at), 0)::integer as age
          from public.trunk_reports r
         order by r.trunk, (r.state = 'active' and r.reported_at >= p_now - p_stale) desc, r.reported_at desc) t);
end
$$;
comment on function private.trunk_health is 'Each trunk: active, stale (said to be active, and nothing since) or down, with the age of the report.';

create or replace function public.report_trunks(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_relay text := private.required(p, 'relay');
  v_count integer;
begin
  insert into public.trunk_reports as r (trunk, relay, state, reason, active_calls, reported_at)
  select distinct on (t ->> 'name') t ->> 'name', v_relay, t ->> 'status', left(t ->> 'reason', 100), coalesce((t ->> 'active_calls')::integer, 0), v_now
    from jsonb_array_elements(coalesce(nullif(p -> 'trunks', 'null'), '[]')) t
  on conflict (trunk, relay) do update
    set state = excluded.state, reason = excluded.reason, active_calls = excluded.active_calls, reported_at = excluded.reported_at
    where r.reported_at <= excluded.reported_at;
  get diagnostics v_count = row_count;
  return jsonb_build_object('stored', v_count);
end
$$;
comment on function public.report_trunks is 'RPC: how a relay''s trunks are; the newest report counts.';

drop trigger if exists trunk_reports_touch on public.trunk_reports;
create trigger trunk_reports_touch before update on public.trunk_reports for each row execute function private.touch_updated_at();
alter table public.trunk_reports enable row level security;
drop policy if exists trunk_reports_select on public.trunk_reports;
create policy trunk_reports_select on public.trunk_reports for select to authenticated using (false);
revoke all on public.trunk_reports from public, anon, authenticated;
grant select, insert, update, delete on public.trunk_reports to service_role;

create or replace function public.health_check(p jsonb default '{}') returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object('ok', true, 'migrations', private.schema_version())
    || case when p ->> 'function' = 'openai-realtime-sip'
            then jsonb_build_object('trunks', private.trunk_health(make_interval(secs => coalesce((p ->> 'trunk_stale_seconds')::numeric, 90)::double precision), private.now_of(p)))
            else '{}' end
$$;
comment on function public.health_check is 'RPC: {ok, migrations}; for the voice function also how each trunk is.';

revoke execute on function private.trunk_health(interval, timestamptz), public.report_trunks(jsonb), public.health_check(jsonb) from public, anon, authenticated;
grant execute on function private.trunk_health(interval, timestamptz), public.report_trunks(jsonb), public.health_check(jsonb) to service_role;
