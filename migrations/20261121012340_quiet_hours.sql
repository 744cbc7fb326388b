-- 20261121012340_quiet_hours.sql
-- A summary wakes nobody: in the quiet hours of where its recipient is it waits, unless it is urgent. Off until somebody sets them.
-- Safe to run again. Locks call_notifications and clients briefly (a column with a constant default; a constraint, not validated).
-- Undo: drop the constraint and the column, and apply the functions of before.

alter table public.call_notifications add column if not exists urgent boolean not null default false;
comment on column public.call_notifications.urgent is 'Whoever asked for it said that it may wake somebody: quiet hours do not hold it back.';
do $$
begin
  perform private.require_columns('public.call_notifications', '{"urgent": "boolean"}');
end
$$;

create or replace function private.is_quiet_hours(p_terms jsonb) returns boolean
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return coalesce(jsonb_typeof(p_terms), 'null') = 'null' or p_terms = 'false'
    or coalesce(jsonb_typeof(p_terms) = 'object'
         and p_terms ->> 'from' ~ '^([01][0-9]|2[0-3]):[0-5][0-9]$'
         and p_terms ->> 'until' ~ '^([01][0-9]|2[0-3]):[0-5][0-9]$'
         and (p_terms ->> 'time_zone' is null or private.is_time_zone(p_terms ->> 'time_zone')), false);
end
$$;
comment on function private.is_quiet_hours is
  'Whether this says when somebody is not to be woken: {from: HH:MM, until: HH:MM, time_zone?}; or null, or false for never.';

do $$
begin
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.clients'::regclass and conname = 'clients_quiet_hours_are_times') then
    alter table public.clients add constraint clients_quiet_hours_are_times check (private.is_quiet_hours(settings -> 'quiet_hours')) not valid;
  end if;
  perform private.validate_where_kept('public.clients', '{clients_quiet_hours_are_times}');
end
$$;
comment on column public.clients.settings is
  'Rarely used: sms_provider names another provider than MTN; quiet_hours, {from: HH:MM, until: HH:MM, time_zone}, are when no summary is sent (zone: Africa/Kigali where it names none).';
comment on column public.profiles.notification_preferences is
  '{policy: both | sms_only | whatsapp_only | none, mirror_replies, allows_whatsapp, quiet_hours: {from, until, time_zone} | false}, policy and allows_whatsapp with their _source and _at; a missing key: the client''s default.';

create or replace function private.quiet_until(p_client_id uuid, p_profile_id uuid, p_now timestamptz) returns timestamptz
language plpgsql stable set search_path = '' as $$
declare
  v_own jsonb;
  v_terms jsonb;
  v_zone text;
  v_local timestamp;
  v_from time;
  v_until time;
begin
  select c.settings -> 'quiet_hours' into v_terms from public.clients c where c.id = p_client_id;
  select p.notification_preferences -> 'quiet_hours' into v_own from public.profiles p where p.id = p_profile_id;
  -- The person's own word counts, the zone of where they are by itself too; what is not understood says nothing.
  v_zone := coalesce(v_own ->> 'time_zone', v_terms ->> 'time_zone', 'Africa/Kigali');
  if not private.is_time_zone(v_zone) then
    v_zone := 'Africa/Kigali';
  end if;
  if v_own is not null and private.is_quiet_hours(v_own) and v_own <> 'null' then
    v_terms := v_own;
  end if;
  if coalesce(jsonb_typeof(v_terms), 'null') <> 'object' or not private.is_quiet_hours(v_terms) then
    return null;
  end if;
  v_from := (v_terms ->> 'from')::time;
  v_until := (v_terms ->> 'until')::time;
  v_local := p_now at time zone v_zone;
  return case
    when v_from < v_until and v_local::time >= v_from and v_local::time < v_until then (v_local::date + v_until) at time zone v_zone
    -- Over midnight.
    when v_from > v_until and v_local::time >= v_from then (v_local::date + 1 + v_until) at time zone v_zone
    when v_from > v_until and v_local::time < v_until then (v_local::date + v_until) at time zone v_zone end;
end
$$;
comment on function private.quiet_until is
  'Until when this person is not to be woken, by their own quiet hours or else the client''s, where they are; null: they may be. From belongs to the quiet hours, until does not.';

create or replace function private.guarded_notification(p_id uuid, p_urgent boolean, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_claim public.call_notifications;
  v_answer jsonb;
begin
  -- Kept: whoever takes the work up after a crash was not told.
  update public.call_notifications set urgent = true where id = p_id and p_urgent and not urgent;
  v_answer := private.notification_answer(p_id, p_now);
  select * into strict v_claim from public.call_notifications where id = p_id;
  return v_answer || jsonb_build_object('guards',
    private.guards_of_work(v_claim.client_id, v_claim.sms_delivery_id, v_claim.whatsapp_delivery_id, v_answer -> 'profile', 'call_summary', false, p_now)
    || jsonb_build_object('quiet_until', private.quiet_until(v_claim.client_id, v_claim.profile_id, p_now), 'urgent', v_claim.urgent));
end
$$;
comment on function private.guarded_notification(uuid, boolean, timestamptz) is
  'The answer to a claim of a notification, with what stands against sending it, or against sending it now.';

create or replace function public.begin_call_notification(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_correlation text := private.required(p, 'correlation_id');
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
  v_wait_seconds integer := coalesce((p ->> 'unknown_wait_seconds')::integer, 120);
  v_wait interval := make_interval(secs => v_wait_seconds);
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_call public.voice_calls;
  v_claim public.call_notifications;
  v_to record;
  v_session_id uuid;
  v_created boolean := false;
  v_known boolean;
  v_claimed boolean := false;
  v_judged text;
begin
  select * into v_call from public.voice_calls where id = private.find_call(private.required(p, 'call_ref'));
  if not found then
    perform private.note_request(p, null, null, 'call_not_found', v_now);
    return jsonb_build_object('decision', 'call_not_found', 'tried',
      jsonb_build_array('call_summaries.id', 'voice_calls.id', 'voice_calls.provider_call_id', 'voice_calls.mtn_call_sid'));
  end if;

  select * into v_claim from public.call_notifications where call_id = v_call.id;
  v_known := found;
  -- Nobody could be told. A later request, or the call's row by now, may name somebody.
  if not v_known or (v_claim.status = 'no_recipient' and v_claim.lease_token <> v_token) then
    select * into v_to from private.recipient_of_call(v_call, p ->> 'profile_ref', p ->> 'phone_number');
    if v_to.profile_id is not null then
      select o.session_id, o.created into v_session_id, v_created
        from private.open_session(v_call.client_id, v_to.profile_id, 'voice', v_call.id, v_idle, v_now) o;
      v_now := greatest(v_now, private.now_of(p));  -- there may have been a wait for the session's lock
    end if;
    if not v_known then
      insert into public.call_notifications
        (client_id, call_id, profile_id, session_id, phone_number, status, lease_token, lease_until, unknown_wait_seconds, session_created,
         correlation_id, finished_at)
      values
        (v_call.client_id, v_call.id, v_to.profile_id, v_session_id, v_to.phone,
         case when v_to.profile_id is null then 'no_recipient' else 'open' end, v_token, v_now + v_lease, v_wait_seconds, v_created, v_correlation,
         case when v_to.profile_id is null then v_now end)
      on conflict (call_id) do nothing
      returning * into v_claim;
      v_claimed := found;
    elsif v_to.profile_id is not null then
      update public.call_notifications
         set status = 'open', profile_id = v_to.profile_id, session_id = v_session_id, phone_number = v_to.phone, session_created = v_created,
             lease_token = v_token, lease_until = v_now + v_lease, unknown_wait_seconds = v_wait_seconds, correlation_id = v_correlation, finished_at = null
       where id = v_claim.id and status = 'no_recipient'
      returning * into v_claim;
      v_claimed := found;
    end if;
    if v_claimed then
      perform private.note_request(p, v_call.id, v_claim.id, 'working', v_now);
      update public.voice_calls set notified_at = v_now, profile_id = coalesce(profile_id, v_claim.profile_id) where id = v_call.id;
      if v_claim.status = 'no_recipient' then
        return jsonb_build_object('decision', 'no_recipient');
      end if;
      perform private.touch_session(v_claim.session_id, 'active', array['voice'], v_now, null, v_call.agent_id, v_call.id);
      update public.conversation_threads set call_id = v_call.id where session_id = v_claim.session_id and call_id is distinct from v_call.id;
      if v_call.direction = 'inbound' then
        update public.profiles set last_active_channel = 'voice' where id = v_claim.profile_id and last_active_channel is distinct from 'voice';
      end if;
      return private.guarded_notification(v_claim.id, coalesce((p ->> 'urgent')::boolean, false), v_now);
    end if;
    select * into strict v_claim from public.call_notifications where call_id = v_call.id;
  end if;

  if v_claim.status in ('open', 'released') then
    perform from public.omnichannel_sessions where id = v_claim.session_id for no key update;
    select * into strict v_claim from public.call_notifications where id = v_claim.id for no key update;
    v_now := greatest(v_now, private.now_of(p));
  end if;
  perform private.note_request(p, v_call.id, v_claim.id, case when v_claim.correlation_id = v_correlation then 'working' else 'duplicate' end, v_now);
  v_judged := private.judge_claim(v_claim.status, v_claim.lease_token, v_claim.lease_until, v_claim.next_attempt_at, v_claim.attempt, v_token, v_wait, v_now);

  if v_judged in ('wait', 'again', 'dead') then
    -- The holder is gone. What a provider reported meanwhile settles it.
    if cardinality(private.record_carried(v_claim.client_id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, null, v_claim.sms_delivery_id,
         v_claim.whatsapp_delivery_id, 'call_summary', v_claim.correlation_id, 'call:' || v_claim.call_id, v_now)) > 0 then
      update public.call_notifications set status = 'done', finished_at = v_now, previous_lease_token = lease_token where id = v_claim.id
      returning * into v_claim;
      perform private.touch_session(v_claim.session_id, 'follow_up', array[]::text[], v_now);
      v_judged := 'finished';
    elsif v_judged = 'dead' then
      update public.call_notifications set status = 'unknown', finished_at = v_now where id = v_claim.id returning * into v_claim;
      perform private.give_up('post-call-notify', 'call:' || v_claim.call_id, jsonb_build_object('call_id', v_claim.call_id), v_claim.attempt::integer,
        'crashed_twice', v_claim.correlation_id, v_claim.client_id);
      v_judged := 'finished';
    end if;
  end if;
  if v_judged = 'free' and v_claim.claims >= 50 then
    update public.call_notifications set status = 'abandoned', finished_at = v_now where id = v_claim.id returning * into v_claim;
    perform private.give_up('post-call-notify', 'call:' || v_claim.call_id, jsonb_build_object('call_id', v_claim.call_id), v_claim.claims,
      'given_back_too_often', v_claim.correlation_id, v_claim.client_id);
    v_judged := 'finished';
  end if;

  case v_judged
    when 'finished' then
      if v_claim.status = 'no_recipient' and v_claim.lease_token = v_token then
        return jsonb_build_object('decision', 'no_recipient');
      end if;
      return jsonb_build_object('decision', 'duplicate', 'correlation_id', v_claim.correlation_id, 'status', v_claim.status);
    when 'live' then
      return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_claim.lease_until, v_now));
    when 'later' then
      return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_claim.next_attempt_at, v_now));
    when 'wait' then
      return jsonb_build_object('decision', 'wait_unknown', 'retry_after_s', private.seconds_until(v_claim.lease_until + v_wait, v_now));
    when 'mine' then
      update public.call_notifications set lease_until = v_now + v_lease where id = v_claim.id;
    when 'free' then
      update public.call_notifications
         set status = 'open', lease_token = v_token, lease_until = v_now + v_lease, claims = claims + 1, next_attempt_at = null, result = null
       where id = v_claim.id;
    when 'again' then
      update public.call_notifications
         set previous_lease_token = lease_token, lease_token = v_token, lease_until = v_now + v_lease,
             claims = claims + 1, attempt = 2, possible_duplicate = true
       where id = v_claim.id;
  end case;
  return private.guarded_notification(v_claim.id, coalesce((p ->> 'urgent')::boolean, false), v_now);
end
$$;
drop function if exists private.guarded_notification(uuid, timestamptz);

create or replace function private.claim_delivery(
  p_id uuid, p_token uuid, p_lease interval, p_wait interval, p_gate text, p_open_until timestamptz, p_now timestamptz
) returns boolean language plpgsql set search_path = '' as $$
declare
  v_row public.message_delivery_log;
  v_resend boolean := false;
  v_quiet_until timestamptz;
begin
  select * into strict v_row from public.message_delivery_log where id = p_id;
  if v_row.lease_token is not null then
    -- Its holder is gone between sending and recording: the outcome is unknown from the end of the lease on.
    perform private.add_own_event(p_id, 'unknown', v_row.lease_until, v_row.correlation_id, 'lease_expired', 'unknown');
    update public.message_delivery_log
       set lease_token = null, lease_until = null, last_outcome = 'unknown',
           next_attempt_at = case when not v_row.possible_duplicate then v_row.lease_until + p_wait end
     where id = p_id;
    perform private.refold_delivery(p_id);
    select * into strict v_row from public.message_delivery_log where id = p_id;
    if v_row.next_attempt_at is null or v_row.next_attempt_at > p_now then
      return false;
    end if;
  end if;
  if v_row.deadline_at <= p_now then
    if v_row.status = 'unknown' then
      update public.message_delivery_log set next_attempt_at = null where id = p_id;
    else
      perform private.add_own_event(p_id, 'expired', p_now, v_row.correlation_id, coalesce(v_row.error_code, 'deadline'), v_row.error_class);
      perform private.refold_delivery(p_id);
    end if;
    return false;
  end if;
  -- STOP came after the message was decided: only the answer to a keyword may still go out.
  if v_row.purpose is distinct from 'keyword' and v_row.profile_id is not null and not private.may_answer(v_row.profile_id, v_row.channel) then
    perform private.add_own_event(p_id, 'suppressed', p_now, v_row.correlation_id);
    update public.message_delivery_log set next_attempt_at = null, suppress_reason = 'opted_out' where id = p_id;
    perform private.refold_delivery(p_id);
    return false;
  end if;
  if v_row.status = 'unknown' and coalesce(v_row.last_outcome, 'unknown') = 'unknown' then
    if v_row.possible_duplicate
       or private.is_carried(p_id, v_row.message_id)
       or private.create_fallback(p_id, p_now) is not null then
      update public.message_delivery_log set next_attempt_at = null where id = p_id;
      return false;
    end if;
    v_resend := true;
  elsif v_row.status = 'unknown' and private.is_carried(p_id, v_row.message_id) then
    -- The resend was refused. An earlier sending may have arrived, and the other channel has the message as well.
    update public.message_delivery_log set next_attempt_at = null where id = p_id;
    return false;
  end if;
  if v_row.purpose = 'call_summary' and not coalesce((select n.urgent from public.call_notifications n where n.call_id = v_row.call_id), false) then
    v_quiet_until := private.quiet_until(v_row.client_id, v_row.profile_id, p_now);
    if v_quiet_until >= v_row.deadline_at and not v_resend then
      perform private.add_own_event(p_id, 'suppressed', p_now, v_row.correlation_id);
      update public.message_delivery_log set next_attempt_at = null, suppress_reason = 'quiet_hours' where id = p_id;
      perform private.refold_delivery(p_id);
      return false;
    elsif v_quiet_until is not null then
      -- Many nights end at the same time.
      update public.message_delivery_log set next_attempt_at = v_quiet_until + random() * interval '2 minutes' where id = p_id;
      return false;
    end if;
  end if;
  if p_gate = 'open' then
    update public.message_delivery_log
       set next_attempt_at = greatest(p_open_until, p_now) + random() * interval '15 seconds' where id = p_id;
    return false;
  end if;
  update public.message_delivery_log
     set lease_token = p_token, lease_until = p_now + p_lease, next_attempt_at = p_now + p_lease, attempts = attempts + 1,
         possible_duplicate = possible_duplicate or v_resend
   where id = p_id;
  perform private.add_own_event(p_id, 'sending', p_now, v_row.correlation_id);
  if v_row.status = 'queued' then
    perform private.refold_delivery(p_id);
  end if;
  return true;
end
$$;

revoke execute on function private.is_quiet_hours(jsonb), private.quiet_until(uuid, uuid, timestamptz), private.guarded_notification(uuid, boolean, timestamptz)
  from public, anon, authenticated;
grant execute on function private.is_quiet_hours(jsonb), private.quiet_until(uuid, uuid, timestamptz), private.guarded_notification(uuid, boolean, timestamptz)
  to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012340'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
