-- 20261121019510_figures_never_stop_the_sweep.sql
-- What the sweep does for figures gives up by itself: a lock that others hold, or the limit of time of the statement, takes nothing else of the
-- sweep with it. Calls are deleted at the age at which SMS are. What no provider took within a week is paid by nobody.
-- Safe to run again. Builds an index on agent_sms (on a large table first `migrate --indexes`). Undo: apply private.keep_sms_figures of 20261121019030,
-- drop private.purge_agent_calls, private.fail_untaken_sms and the index.

create or replace function private.purge_agent_calls(p_now timestamptz, p_limit integer default 2000) returns integer
language plpgsql set search_path = '' as $$
declare
  v_client record;
  v_round integer;
  v_purged integer := 0;
begin
  for v_client in
    select c.id, p_now - make_interval(months => coalesce(
             case when c.settings ->> 'sms_retention_months' ~ '^[1-9][0-9]{0,3}$' then (c.settings ->> 'sms_retention_months')::integer end, 36)) as horizon
      from public.clients c order by c.id
  loop
    exit when v_purged >= p_limit;
    delete from public.agent_calls where id in (
      select a.id from public.agent_calls a where a.client_id = v_client.id and a.started_at < v_client.horizon
       order by a.started_at limit p_limit - v_purged for update skip locked);
    get diagnostics v_round = row_count;
    v_purged := v_purged + v_round;
  end loop;
  return v_purged;
end
$$;
comment on function private.purge_agent_calls is
  'Deletes rows of agent_calls at the age at which private.purge_agent_sms deletes SMS, the oldest first, so many at once; how many. voice_calls stays.';

-- Neither column changes with a status: a status still touches no index.
create index if not exists idx_agent_sms_without_id on public.agent_sms (sent_at) where provider_message_sid is null and delivery_id is null;
create or replace function private.fail_untaken_sms(p_from timestamptz, p_until timestamptz, p_limit integer) returns integer
language plpgsql set search_path = '' as $$
declare
  v_failed integer;
begin
  update public.agent_sms s set status = 'failed', failure_reason = 'never_taken' where s.id in (
    select w.id from public.agent_sms w
     where w.provider_message_sid is null and w.delivery_id is null and w.sent_at >= p_from and w.sent_at < p_until
       and w.status = 'pending' and w.replied_at is null and private.is_e164(w.phone_number) is not false
     order by w.sent_at limit p_limit for update skip locked);
  get diagnostics v_failed = row_count;
  return v_failed;
end
$$;
comment on function private.fail_untaken_sms is
  'SMS of others, sent between two times, that still wait and have no id of a provider fail (never_taken): they cost nothing. A report of arrival that comes all the same counts. How many.';
do $$
begin
  perform private.fail_untaken_sms('-infinity', now() - interval '7 days', null);
end
$$;

create or replace function private.keep_sms_figures(p_now timestamptz) returns jsonb
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
declare
  v_folded integer := 0;
  v_round integer;
  v_purged integer;
  v_calls integer;
  v_untaken integer;
  v_priced integer;
  v_watched integer := 0;
  -- The sweep has other things to do, and a limit of time; what is left waits a minute.
  v_ends constant timestamptz := clock_timestamp() + interval '2 seconds';
begin
  loop
    v_round := private.fold_sms_changes(5000);
    v_folded := v_folded + v_round;
    exit when v_round < 5000 or clock_timestamp() > v_ends;
  end loop;
  v_purged := private.purge_agent_sms(p_now);
  v_calls := private.purge_agent_calls(p_now);
  -- Those that nobody has looked at for a month were looked at before.
  v_untaken := private.fail_untaken_sms(p_now - interval '30 days', p_now - interval '7 days', 2000);
  v_priced := private.price_what_is_unpriced(2000, p_now);
  -- Every quarter of an hour: they change slowly, and cost a look at a day.
  if extract(minute from p_now)::integer % 15 = 0 then
    v_watched := private.watch_sms_of_clients(30, p_now) + private.watch_success(p_now);
  end if;
  return jsonb_build_object('folded', v_folded, 'purged', v_purged, 'purged_calls', v_calls, 'untaken', v_untaken, 'priced', v_priced, 'alerts', v_watched);
-- Figures can wait; what else the sweep has found cannot. `others` alone leaves out the end of a statement's time.
exception when query_canceled or others then
  declare
    v_code constant text := sqlstate;
  begin
    perform private.raise_alert('sms_figures', 'warning', 'sms_figures', 'The figures of SMS could not be brought up to date.', jsonb_build_object('code', v_code));
    return jsonb_build_object('code', v_code);
  exception when lock_not_available then
    return jsonb_build_object('code', v_code);
  end;
end
$$;
comment on function private.keep_sms_figures is
  'What the sweep does for agent_sms: folds sums, deletes what is too old (calls too), fails what no provider took, prices what had no price, and each quarter of an hour looks at targets, failures and costs; {folded, purged, purged_calls, untaken, priced, alerts}, or {code} of what went wrong, with an alert. Waits two seconds for a lock at most.';

revoke execute on function private.purge_agent_calls(timestamptz, integer), private.fail_untaken_sms(timestamptz, timestamptz, integer),
  private.keep_sms_figures(timestamptz) from public, anon, authenticated;
grant execute on function private.purge_agent_calls(timestamptz, integer), private.fail_untaken_sms(timestamptz, timestamptz, integer),
  private.keep_sms_figures(timestamptz) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019510'::text $$;

notify pgrst, 'reload schema';
