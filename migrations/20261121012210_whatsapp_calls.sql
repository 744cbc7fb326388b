-- 20261121012210_whatsapp_calls.sql
-- Calls over WhatsApp as Meta's webhooks tell of them: late, twice, and the end before the beginning.
-- Safe to run again. Locks no table. Undo: drop the function.

create or replace function public.record_whatsapp_calls(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_event jsonb;
  v_at timestamptz;
  v_answered timestamptz;
  v_duration integer;
  v_inbound boolean;
  v_cause text;
  v_client_id uuid;
  v_profile_id uuid;
  v_session_id uuid;
  v_call public.voice_calls;
  v_calls jsonb := '[]';
  v_notify jsonb := '[]';
begin
  -- In one order whoever comes: two batches about the same people wait for each other once.
  for v_event in
    select e.value from jsonb_array_elements(coalesce(nullif(p -> 'calls', 'null'), '[]')) with ordinality as e (value, n)
     order by coalesce(e.value ->> 'phone', e.value ->> 'user_id'), e.value ->> 'call_sid', e.n
  loop
    v_at := least(coalesce((v_event ->> 'occurred_at')::timestamptz, v_now), v_now);
    v_answered := least((v_event ->> 'answered_at')::timestamptz, v_at);
    v_duration := coalesce((v_event ->> 'duration_seconds')::integer, 0);
    v_inbound := v_event ->> 'direction' is distinct from 'outbound';
    v_client_id := private.client_of_address('whatsapp', v_event ->> 'phone_number_id');
    select * into v_call from public.voice_calls c where c.origin = 'whatsapp' and c.provider_call_id = private.required(v_event, 'call_sid');
    if not found then
      v_profile_id := private.ensure_whatsapp_profile(v_event ->> 'phone', v_event ->> 'user_id', v_event ->> 'display_name');
      insert into public.voice_calls
        (client_id, origin, provider_call_id, direction, from_number, to_number, status, started_at, profile_id, correlation_id)
      values
        (v_client_id, 'whatsapp', v_event ->> 'call_sid', case when v_inbound then 'inbound' else 'outbound' end,
         case when v_inbound then coalesce(v_event ->> 'phone', v_event ->> 'user_id') else v_event ->> 'phone_number_id' end,
         case when v_inbound then v_event ->> 'phone_number_id' else coalesce(v_event ->> 'phone', v_event ->> 'user_id') end,
         'in_progress', coalesce(v_answered, v_at), v_profile_id, p ->> 'correlation_id')
      on conflict (origin, provider_call_id) do nothing;
      select * into strict v_call from public.voice_calls c where c.origin = 'whatsapp' and c.provider_call_id = v_event ->> 'call_sid';
    end if;
    if v_call.ended_at is null and v_call.erased_at is null and v_call.profile_id is not null then
      select o.session_id into v_session_id from private.open_session(v_call.client_id, v_call.profile_id, 'voice', v_call.id, v_idle, v_now) o;
      select * into strict v_call from public.voice_calls c where c.id = v_call.id for no key update;
    end if;
    if v_call.ended_at is null and v_call.erased_at is null and v_call.profile_id is not null then
      perform private.touch_session(v_session_id, 'active', array['voice'], v_now, null, null, v_call.id);
      update public.conversation_threads t set call_id = v_call.id where t.session_id = v_session_id and t.call_id is distinct from v_call.id;
      if v_inbound then
        -- The person's own call opens the service window, answered or not.
        perform private.note_whatsapp_inbound(v_call.client_id, v_call.profile_id, v_session_id, v_event ->> 'phone', v_at);
        update public.profiles pr set last_active_channel = 'voice' where pr.id = v_call.profile_id and pr.last_active_channel is distinct from 'voice';
      end if;
      if v_event ->> 'event' = 'terminate' then
        v_cause := case when v_duration > 0 then 'unknown' when coalesce((v_event ->> 'failed')::boolean, false) then 'setup_failed' else 'no_answer' end;
        update public.voice_calls c
           set session_id = v_session_id, answered_at = v_answered, started_at = least(c.started_at, coalesce(v_answered, v_at)),
               ended_at = greatest(v_at, c.started_at), duration_seconds = v_duration, end_cause = v_cause, status = private.status_of_cause(v_cause)
         where c.id = v_call.id
        returning * into v_call;
      else
        update public.voice_calls c set session_id = v_session_id, started_at = least(c.started_at, v_at) where c.id = v_call.id returning * into v_call;
      end if;
    end if;
    v_calls := v_calls || jsonb_build_object('call_id', v_call.id, 'status', v_call.status);
    -- Asked for again for as long as nobody has begun it: a request may have been lost on its way to the queue.
    if v_call.ended_at is not null and v_call.notified_at is null and v_call.erased_at is null
       and (v_call.direction = 'inbound' or v_call.status = 'completed') then
      v_notify := v_notify || jsonb_build_object('call_id', v_call.id, 'profile_id', v_call.profile_id,
        'phone_number', v_event ->> 'phone', 'correlation_id', v_call.correlation_id);
    end if;
  end loop;
  return jsonb_build_object('calls', v_calls, 'notify', v_notify);
end
$$;
comment on function public.record_whatsapp_calls is
  'RPC: records what Meta tells of calls over WhatsApp, in any order and any number of times; the first end counts. `notify`: ended calls whose message is still to be asked for.';
revoke execute on function public.record_whatsapp_calls(jsonb) from public, anon, authenticated;
grant execute on function public.record_whatsapp_calls(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012210'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
