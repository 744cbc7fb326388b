-- 20261121011100_guards.sql
-- Guards: the circuit breaker of each provider, shared by all isolates, and counters that limit rates.
-- Safe to run again. Locks only new tables. Undo: drop the tables and functions.
create table if not exists public.provider_health (
  provider text constraint provider_health_pkey primary key,
  state text not null default 'closed',
  reason text,
  open_seconds integer not null default 30,
  open_until timestamptz,
  probe_token uuid,
  probe_until timestamptz,
  changed_at timestamptz not null default now(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint provider_health_state_is_known check (state in ('closed', 'open', 'half_open')),
  constraint provider_health_open_has_an_end check (state = 'closed' or open_until is not null)
);
do $$
begin
  perform private.require_columns('public.provider_health', '{
    "provider": "text", "state": "text", "reason": "text", "open_seconds": "integer", "open_until": "timestamp with time zone",
    "probe_token": "uuid", "probe_until": "timestamp with time zone", "changed_at": "timestamp with time zone",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
comment on table public.provider_health is 'Circuit breaker a provider. Written on transitions only; between them it is computed from the attempts.';
comment on column public.provider_health.open_seconds is 'Length of the current opening: 30, doubled by each failed probe up to 300; 900 after a configuration error.';
comment on column public.provider_health.probe_token is 'Lease of the one that may try while half open.';
comment on column public.provider_health.changed_at is 'Last transition; attempts before it no longer count.';
comment on column public.provider_health.state is 'closed: send; open: do not, until open_until; half_open: one may try.';
comment on column public.provider_health.reason is 'Why it is open: failures, config.';
comment on column public.provider_health.open_until is 'End of the pause; then one probe.';
comment on column public.provider_health.probe_until is 'End of the probe''s lease; then another may try.';
insert into public.provider_health (provider) values ('mtn'), ('whatsapp'), ('openai') on conflict do nothing;

create table if not exists public.provider_outcomes (
  id bigint generated always as identity constraint provider_outcomes_pkey primary key,
  provider text not null,
  outcome text not null,
  error_class text,
  created_at timestamptz not null default now()
);
do $$
begin
  perform private.require_columns('public.provider_outcomes', '{
    "id": "bigint", "provider": "text", "outcome": "text", "error_class": "text", "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_provider_outcomes_provider on public.provider_outcomes (provider, created_at desc);
comment on table public.provider_outcomes is 'Outcomes of calls that are no delivery (models), for the circuit breaker; kept for an hour.';
comment on column public.provider_outcomes.outcome is 'accepted, or the class of what went wrong.';

create table if not exists public.rate_limits (
  bucket text not null,
  window_start timestamptz not null,
  taken integer not null default 0,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint rate_limits_pkey primary key (bucket, window_start)
);
do $$
begin
  perform private.require_columns('public.rate_limits', '{
    "bucket": "text", "window_start": "timestamp with time zone", "taken": "integer", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_rate_limits_window on public.rate_limits (window_start);
comment on table public.rate_limits is 'Counters of fixed windows; old windows are swept.';
comment on column public.rate_limits.bucket is 'What is limited, such as sms_inbound:<profile id>.';

create or replace function private.take_rate_limit(p_bucket text, p_limit integer, p_window interval, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_start timestamptz := date_bin(p_window, p_now, '2000-01-01 00:00:00+00');
  v_taken integer;
begin
  insert into public.rate_limits (bucket, window_start, taken) values (p_bucket, v_start, 1)
  on conflict (bucket, window_start) do update set taken = rate_limits.taken + 1
  returning taken into v_taken;
  return jsonb_build_object(
    'allowed', v_taken <= p_limit,
    'remaining', greatest(p_limit - v_taken, 0),
    'retry_after_s', case when v_taken > p_limit then ceil(extract(epoch from v_start + p_window - p_now))::integer else 0 end);
end
$$;
comment on function private.take_rate_limit is 'Takes one from a bucket of so many a window: {allowed, remaining, retry_after_s}.';

create or replace function public.take_rate_limit(p jsonb) returns jsonb
language sql set search_path = '' as $$
  select private.take_rate_limit(
    private.required(p, 'bucket'), private.required(p, 'limit')::integer,
    make_interval(secs => private.required(p, 'window_seconds')::integer), private.now_of(p))
$$;
comment on function public.take_rate_limit is 'RPC {bucket, limit, window_seconds} -> {allowed, remaining, retry_after_s}.';

create or replace function private.provider_gate(
  p_provider text, p_may_probe boolean, p_lease_token uuid, p_now timestamptz, p_probe_seconds integer default 60
) returns jsonb language plpgsql set search_path = '' as $$
declare
  v_health public.provider_health;
  v_until timestamptz;
begin
  select * into v_health from public.provider_health where provider = p_provider;
  if not found or v_health.state = 'closed' then
    return jsonb_build_object('gate', 'closed', 'open_until', null);
  end if;
  if p_now < v_health.open_until then
    return jsonb_build_object('gate', 'open', 'open_until', v_health.open_until);
  end if;
  if v_health.probe_token = p_lease_token and v_health.probe_until > p_now then
    return jsonb_build_object('gate', 'probe', 'open_until', null);
  end if;
  if p_may_probe then
    update public.provider_health
       set state = 'half_open', probe_token = p_lease_token, probe_until = p_now + make_interval(secs => p_probe_seconds)
     where provider = (
       select provider from public.provider_health
        where provider = p_provider and state <> 'closed' and open_until <= p_now and (probe_until is null or probe_until <= p_now)
          for no key update skip locked);
    if found then
      return jsonb_build_object('gate', 'probe', 'open_until', null);
    end if;
  end if;
  return jsonb_build_object('gate', 'open', 'open_until', greatest(v_health.probe_until, p_now + interval '5 seconds'));
end
$$;
comment on function private.provider_gate is
  'closed: send; open: do not, until open_until; probe: you are the one that tries. Take last in a transaction: a probe locks the row.';

create or replace function private.provider_gates(
  p_wanted text[], p_lease_token uuid, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
begin
  return (
    select jsonb_object_agg(h.provider, private.provider_gate(h.provider, h.provider = any (p_wanted), p_lease_token, p_now) order by h.provider)
      from public.provider_health h);
end
$$;
comment on function private.provider_gates is 'The gate of every provider; a probe is only taken for those that the work may use.';

create or replace function private.note_provider_outcome(
  p_provider text, p_outcome text, p_counts boolean, p_lease_token uuid, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
  v_health public.provider_health;
  v_all integer;
  v_bad integer;
  v_seconds integer;
begin
  select * into v_health from public.provider_health where provider = p_provider;
  if not found then
    insert into public.provider_health (provider) values (p_provider) on conflict do nothing;
    select * into v_health from public.provider_health where provider = p_provider;
  end if;

  if p_outcome = 'config' then
    update public.provider_health
       set state = 'open', reason = 'config', open_seconds = 900, open_until = p_now + interval '15 minutes',
           probe_token = null, probe_until = null, changed_at = p_now
     where provider = p_provider and (state <> 'open' or reason is distinct from 'config' or open_until < p_now + interval '14 minutes');
    perform private.raise_alert('provider_config', 'critical', 'provider_config:' || p_provider,
      format('%s refuses our credentials or configuration; its messages wait, nothing is lost.', p_provider),
      jsonb_build_object('provider', p_provider));
    return;
  end if;

  if v_health.state = 'closed' then
    if not p_counts or p_outcome not in ('retryable', 'unknown') then
      return;
    end if;
    select count(*), count(*) filter (where o.outcome <> 'accepted') into v_all, v_bad
      from (
        select outcome, created_at from (
          (select a.outcome, a.created_at from public.message_delivery_attempts a
            where a.provider = p_provider and a.created_at > greatest(p_now - interval '60 seconds', v_health.changed_at)
              and a.counts and a.outcome in ('accepted', 'retryable', 'unknown')
            order by a.created_at desc limit 20)
          union all
          (select c.outcome, c.created_at from public.provider_outcomes c
            where c.provider = p_provider and c.created_at > greatest(p_now - interval '60 seconds', v_health.changed_at)
              and c.outcome in ('accepted', 'retryable', 'unknown')
            order by c.created_at desc limit 20)
        ) both_kinds
        order by created_at desc limit 20
      ) o;
    if v_all >= 5 and v_bad * 2 >= v_all then
      update public.provider_health
         set state = 'open', reason = 'failures', open_seconds = 30, open_until = p_now + interval '30 seconds',
             probe_token = null, probe_until = null, changed_at = p_now
       where provider = p_provider and state = 'closed';
      perform private.raise_alert('provider_open', 'warning', 'provider_open:' || p_provider,
        format('%s failed %s of its last %s calls; it gets a pause and the other channel carries the messages.', p_provider, v_bad, v_all),
        jsonb_build_object('provider', p_provider, 'failed', v_bad, 'of', v_all));
    end if;
    return;
  end if;

  -- Half open: only the one that holds the probe decides.
  if v_health.probe_token is distinct from p_lease_token then
    return;
  end if;
  if p_outcome in ('retryable', 'unknown') and p_counts then
    v_seconds := least(case when v_health.reason = 'config' then 30 else v_health.open_seconds end * 2, 300);
    update public.provider_health
       set state = 'open', reason = 'failures', open_seconds = v_seconds, open_until = p_now + make_interval(secs => v_seconds),
           probe_token = null, probe_until = null, changed_at = p_now
     where provider = p_provider and probe_token = p_lease_token;
  elsif p_outcome in ('accepted', 'permanent', 'bug', 'retryable', 'unknown') then
    update public.provider_health
       set state = 'closed', reason = null, open_seconds = 30, open_until = null, probe_token = null, probe_until = null, changed_at = p_now
     where provider = p_provider and probe_token = p_lease_token;
    update public.alerts set resolved_at = p_now
     where dedupe_key in ('provider_open:' || p_provider, 'provider_config:' || p_provider) and resolved_at is null;
  end if;
end
$$;
comment on function private.note_provider_outcome is
  'Moves the circuit breaker after an outcome is stored. Open at 50 % of the last 20 counting outcomes in 60 s (5 at least), at once on a configuration error.';

create or replace function private.note_provider_calls(p_calls jsonb, p_lease_token uuid, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
  v_call jsonb;
  v_outcome text;
begin
  for v_call in select c from jsonb_array_elements(coalesce(nullif(p_calls, 'null'), '[]')) c order by c ->> 'provider' loop
    v_outcome := coalesce(v_call ->> 'outcome', v_call ->> 'class');
    insert into public.provider_outcomes (provider, outcome, error_class, created_at)
    values (private.required(v_call, 'provider'), v_outcome, v_call ->> 'class', p_now);
    perform private.note_provider_outcome(v_call ->> 'provider', v_outcome, true, p_lease_token, p_now);
  end loop;
end
$$;
comment on function private.note_provider_calls is 'Stores the outcomes of model calls and moves their breakers.';

create or replace function private.release_probes(p_lease_token uuid) returns void
language plpgsql set search_path = '' as $$
begin
  update public.provider_health set probe_token = null, probe_until = null
   where probe_token = p_lease_token;
end
$$;
comment on function private.release_probes is 'Gives back the probes that the work took and did not use.';

drop trigger if exists provider_health_touch on public.provider_health;
create trigger provider_health_touch before update on public.provider_health for each row execute function private.touch_updated_at();
drop trigger if exists rate_limits_touch on public.rate_limits;
create trigger rate_limits_touch before update on public.rate_limits for each row execute function private.touch_updated_at();

alter table public.provider_health enable row level security;
alter table public.provider_outcomes enable row level security;
alter table public.rate_limits enable row level security;
drop policy if exists provider_health_select on public.provider_health;
create policy provider_health_select on public.provider_health for select to authenticated using (false);
drop policy if exists provider_outcomes_select on public.provider_outcomes;
create policy provider_outcomes_select on public.provider_outcomes for select to authenticated using (false);
drop policy if exists rate_limits_select on public.rate_limits;
create policy rate_limits_select on public.rate_limits for select to authenticated using (false);
revoke all on public.provider_health, public.provider_outcomes, public.rate_limits from public, anon, authenticated;
grant select, insert, update, delete on public.provider_health, public.provider_outcomes, public.rate_limits to service_role;
revoke all on sequence public.provider_outcomes_id_seq from public, anon, authenticated;
grant usage, select on sequence public.provider_outcomes_id_seq to service_role;
revoke execute on function public.take_rate_limit(jsonb) from public, anon, authenticated;
grant execute on function public.take_rate_limit(jsonb) to service_role;
revoke execute on function private.take_rate_limit(text, integer, interval, timestamptz),
  private.provider_gate(text, boolean, uuid, timestamptz, integer), private.provider_gates(text[], uuid, timestamptz),
  private.note_provider_outcome(text, text, boolean, uuid, timestamptz), private.note_provider_calls(jsonb, uuid, timestamptz),
  private.release_probes(uuid) from public, anon, authenticated;
grant execute on function private.take_rate_limit(text, integer, interval, timestamptz),
  private.provider_gate(text, boolean, uuid, timestamptz, integer), private.provider_gates(text[], uuid, timestamptz),
  private.note_provider_outcome(text, text, boolean, uuid, timestamptz), private.note_provider_calls(jsonb, uuid, timestamptz),
  private.release_probes(uuid) to service_role;
