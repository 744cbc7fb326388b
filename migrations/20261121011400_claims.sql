-- 20261121011400_claims.sql
-- What both kinds of claim (a call's notification, an SMS turn) share: how a claim found in place is judged, and giving up.
-- Safe to run again. Locks no table. Undo: drop the functions.
create or replace function private.judge_claim(
  p_status text, p_lease_token uuid, p_lease_until timestamptz, p_next_attempt_at timestamptz, p_attempt integer,
  p_token uuid, p_wait interval, p_now timestamptz
) returns text language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return case
    when p_status not in ('open', 'released') then 'finished'
    when p_status = 'open' and p_lease_token = p_token then 'mine'
    when p_status = 'released' and p_next_attempt_at > p_now then 'later'
    when p_status = 'released' then 'free'
    when p_lease_until > p_now then 'live'
    when p_lease_until + p_wait > p_now then 'wait'
    when p_attempt < 2 then 'again'
    else 'dead' end;
end
$$;
comment on function private.judge_claim is
  'finished; mine: the same token asks again, its answer was lost; live: another works; free or later: was given back; '
  'wait: the holder is gone and may have sent, a report may still come; again: the one re-claim; dead: crashed twice.';

create or replace function private.seconds_until(p_until timestamptz, p_now timestamptz) returns integer
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return greatest(ceil(extract(epoch from p_until - p_now))::integer, 1);
end
$$;
comment on function private.seconds_until is 'Whole seconds to wait, at least one.';

create or replace function private.give_up(
  p_queue text, p_message_id text, p_payload jsonb, p_attempts integer, p_reason text, p_correlation_id text, p_client_id uuid,
  p_details jsonb default '{}'
) returns uuid language plpgsql set search_path = '' as $$
declare
  v_id uuid;
begin
  insert into public.dead_letters (queue, message_id, payload, attempts, reason, correlation_id, client_id)
  values (p_queue, p_message_id, p_payload, p_attempts, p_reason, p_correlation_id, p_client_id)
  on conflict (queue, message_id) do nothing
  returning id into v_id;
  if v_id is null then
    select id into v_id from public.dead_letters where queue = p_queue and message_id = p_message_id;
    return v_id;
  end if;
  perform private.raise_alert('dead_letter', 'critical', 'dead_letter:' || p_queue || ':' || coalesce(p_reason, 'unknown'),
    format('Work of the queue %s was given up: %s.', p_queue, coalesce(p_reason, 'unknown')),
    jsonb_build_object('queue', p_queue, 'dead_letter_id', v_id, 'correlation_id', p_correlation_id, 'reason', p_reason) || p_details, p_client_id);
  return v_id;
end
$$;
comment on function private.give_up is 'A dead letter and its alert; the same message of a queue once.';

revoke execute on function private.judge_claim(text, uuid, timestamptz, timestamptz, integer, uuid, interval, timestamptz),
  private.seconds_until(timestamptz, timestamptz), private.give_up(text, text, jsonb, integer, text, text, uuid, jsonb) from public, anon, authenticated;
grant execute on function private.judge_claim(text, uuid, timestamptz, timestamptz, integer, uuid, interval, timestamptz),
  private.seconds_until(timestamptz, timestamptz), private.give_up(text, text, jsonb, integer, text, text, uuid, jsonb) to service_role;
