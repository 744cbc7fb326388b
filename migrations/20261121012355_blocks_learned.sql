-- 20261121012355_blocks_learned.sql
-- A provider says that somebody wants no WhatsApp messages from us (131050): kept as their own word is, until they write there again.
-- Safe to run again. Locks message_status_events briefly (a trigger). Undo: drop the trigger, and apply begin_sms_turn of before.

create or replace function private.learn_whatsapp_block() returns trigger
language plpgsql set search_path = '' as $$
begin
  update public.profiles p
     set notification_preferences = p.notification_preferences
           || jsonb_build_object('allows_whatsapp', false, 'allows_whatsapp_source', 'provider', 'allows_whatsapp_at', new.occurred_at)
    from public.message_delivery_log l
   where l.id = new.delivery_id and l.channel = 'whatsapp' and p.id = l.profile_id
     and private.may_answer(p.id, 'whatsapp')
     -- What they said themselves since then counts more.
     and coalesce(p.last_whatsapp_inbound_at, '-infinity') < new.occurred_at
     and coalesce((p.notification_preferences ->> 'allows_whatsapp_at')::timestamptz, '-infinity') < new.occurred_at;
  return null;
end
$$;
comment on function private.learn_whatsapp_block is
  'Trigger: a status of WhatsApp says that its recipient opted out. The same of SMS is private.apply_evidence.';

drop trigger if exists message_status_events_learn_block on public.message_status_events;
-- At the end of the transaction: a profile is locked after all that the transaction locks besides.
create constraint trigger message_status_events_learn_block after insert or update of delivery_id on public.message_status_events
  deferrable initially deferred
  for each row when (new.evidence = 'opted_out' and new.delivery_id is not null) execute function private.learn_whatsapp_block();

create or replace function public.begin_sms_turn(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_correlation text := private.required(p, 'correlation_id');
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
  v_wait interval := make_interval(secs => coalesce((p ->> 'unknown_wait_seconds')::integer, 120));
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_history integer := coalesce((p ->> 'history_limit')::integer, 20);
  v_keyword text := nullif(p ->> 'keyword', '');
  v_channel text := coalesce(p ->> 'channel', 'sms');
  v_from text := coalesce(p ->> 'from', p ->> 'user_id');
  v_message public.conversation_messages;
  v_client_id uuid;
  v_profile_id uuid;
  v_session_id uuid;
  v_created boolean;
  v_turn_id uuid;
  v_known boolean := true;
  v_limited boolean := false;
begin
  if p ->> 'provider_message_id' is null and p ->> 'session_id' is not null then
    select s.id, s.client_id, s.profile_id into v_session_id, v_client_id, v_profile_id
      from public.omnichannel_sessions s where s.id = (p ->> 'session_id')::uuid;
    if not found then
      return jsonb_build_object('decision', 'nothing');
    end if;
    perform private.lock_person(v_client_id, v_profile_id);
    perform from public.omnichannel_sessions where id = v_session_id for no key update;
    v_now := greatest(v_now, private.now_of(p));
    return private.claim_turn(v_session_id, 'session', null, false, v_token, v_correlation, v_lease, v_wait, v_history, v_now);
  end if;

  if v_channel not in ('sms', 'whatsapp') then
    raise exception using errcode = 'PT400', message = format('channel %s is not known', v_channel);
  end if;
  if v_from is null then
    perform private.required(p, 'from');
  end if;
  -- The sender is part of the key: some gateways count for each of them, or start again from one.
  v_profile_id := case v_channel when 'whatsapp' then private.profile_of_whatsapp(p ->> 'from', p ->> 'user_id') else private.profile_of_phone(v_from) end;
  select * into v_message from public.conversation_messages
   where direction = 'inbound' and provider = private.required(p, 'provider') and provider_message_id = private.required(p, 'provider_message_id')
     -- Meta's ids are its own for all senders, and a sender may have become somebody else's profile meanwhile.
     and (v_channel = 'whatsapp' or profile_id = v_profile_id)
   order by created_at limit 1;
  if not found then
    v_client_id := private.client_of_address(v_channel, p ->> 'to');
    v_profile_id := case v_channel
      when 'whatsapp' then private.ensure_whatsapp_profile(p ->> 'from', p ->> 'user_id')
      else private.ensure_profile(v_from) end;
    perform private.lock_person(v_client_id, v_profile_id);
    if v_channel = 'whatsapp' then
      perform private.name_whatsapp_sender(v_profile_id, p ->> 'from', p ->> 'user_id', p ->> 'display_name');
    end if;
    select o.session_id, o.created into v_session_id, v_created
      from private.open_session(v_client_id, v_profile_id, v_channel, null, v_idle, v_now) o;
    v_now := greatest(v_now, private.now_of(p));  -- there may have been a wait for the session's lock
    if coalesce((p ->> 'keyword_may_answer')::boolean, false)
       and (private.question_is_open(v_session_id, v_now)
         or v_keyword = 'start' and private.may_answer(v_profile_id, v_channel)) then
      v_keyword := null;
    end if;
    insert into public.conversation_messages
      (client_id, thread_id, session_id, profile_id, call_id, direction, role, channel, kind, content, language, provider, provider_message_id,
       correlation_id, occurred_at, reported_at)
    select v_client_id, t.id, v_session_id, v_profile_id, t.call_id, 'inbound', 'user', v_channel,
           case when v_keyword is null then 'conversation' else 'keyword' end, coalesce(p ->> 'text', ''), p ->> 'language_hint',
           p ->> 'provider', p ->> 'provider_message_id', v_correlation, coalesce((p ->> 'received_at')::timestamptz, v_now), (p ->> 'reported_at')::timestamptz
      from public.conversation_threads t where t.session_id = v_session_id
    on conflict (provider, provider_message_id, profile_id) where direction = 'inbound' do nothing
    returning * into v_message;
    v_known := not found;
    if v_known then
      select * into strict v_message from public.conversation_messages
       where direction = 'inbound' and provider = p ->> 'provider' and provider_message_id = p ->> 'provider_message_id' and profile_id = v_profile_id;
    end if;
  end if;

  if v_known then
    if v_message.handled_at is not null
       or exists (select from public.conversation_turns t
                   where t.id = v_message.turn_id and t.status = 'open' and t.lease_token <> v_token and t.lease_until > v_now) then
      return jsonb_build_object('decision', 'duplicate');
    end if;
    -- Delivered again and still owed: its holder crashed or gave it back, or asks again under the same token.
    perform private.lock_person(v_message.client_id, v_message.profile_id);
    perform from public.omnichannel_sessions where id = v_message.session_id for no key update;
    v_now := greatest(v_now, private.now_of(p));
    select * into strict v_message from public.conversation_messages where id = v_message.id;
    return private.claim_turn(v_message.session_id, 'known', v_message.turn_id, false, v_token, v_correlation, v_lease, v_wait, v_history, v_now);
  end if;

  insert into public.message_delivery_log
    (client_id, session_id, profile_id, call_id, message_id, direction, channel, purpose, status, status_at, provider, provider_message_id,
     correlation_id, recipient, sender, content, delivered_at)
  values
    (v_client_id, v_session_id, v_profile_id, v_message.call_id, v_message.id, 'inbound', v_channel, 'inbound', 'delivered', v_message.occurred_at,
     v_message.provider, v_message.provider_message_id, v_correlation, p ->> 'to', v_from, v_message.content, v_message.occurred_at)
  on conflict do nothing;
  perform private.touch_session(v_session_id, 'active', array[v_channel], v_now);
  if v_channel = 'whatsapp' then
    perform private.note_whatsapp_inbound(v_client_id, v_profile_id, v_session_id, p ->> 'from', v_message.occurred_at);
    -- Who writes wants an answer: what a provider told of them is out of date. What they said themselves is not.
    update public.profiles
       set notification_preferences = notification_preferences
             || jsonb_build_object('allows_whatsapp', true, 'allows_whatsapp_source', 'inbound', 'allows_whatsapp_at', v_now)
     where id = v_profile_id and notification_preferences ->> 'allows_whatsapp_source' = 'provider'
       and notification_preferences ->> 'allows_whatsapp' = 'false';
  end if;

  -- Whoever proves nothing chooses the sender as well: one bucket for all of them.
  if coalesce((p ->> 'unsigned')::boolean, false) then
    v_limited := not (private.take_rate_limit('sms_inbound_unsigned:' || v_client_id || ':' || (p ->> 'provider'),
      coalesce((p ->> 'unsigned_limit_per_hour')::integer, 60), interval '1 hour', v_now) ->> 'allowed')::boolean;
    if v_limited and v_keyword = 'stop' then
      -- Obeyed, as every STOP is, but without an answer that somebody pays for.
      update public.profiles set allows_sms = false, allows_sms_source = 'keyword', allows_sms_at = v_now where id = v_profile_id and allows_sms;
    end if;
  end if;
  -- STOP is never limited: it must work most of all for those who get too much.
  if v_limited
     or v_keyword is distinct from 'stop'
     and not (private.take_rate_limit(v_channel || '_inbound:' || v_profile_id, coalesce((p ->> 'rate_limit_per_hour')::integer, 120), interval '1 hour', v_now)
              ->> 'allowed')::boolean then
    update public.conversation_messages set handled_at = v_now, handled_as = 'rate_limited' where id = v_message.id;
    return jsonb_build_object('decision', 'rate_limited');
  end if;

  -- A reaction: part of the conversation, and nothing to answer.
  if not coalesce((p ->> 'wants_answer')::boolean, true) then
    update public.conversation_messages set handled_at = v_now, handled_as = 'no_answer_wanted' where id = v_message.id;
    return jsonb_build_object('decision', 'no_answer_wanted');
  end if;

  if v_keyword is null then
    update public.profiles set last_active_channel = v_channel where id = v_profile_id and last_active_channel is distinct from v_channel;
    return private.claim_turn(v_session_id, 'new', null, v_created, v_token, v_correlation, v_lease, v_wait, v_history, v_now);
  end if;

  if v_keyword = 'stop' and not private.may_answer(v_profile_id, v_channel) then
    update public.conversation_messages set handled_at = v_now, handled_as = 'opted_out' where id = v_message.id;
    return jsonb_build_object('decision', 'opted_out');
  end if;
  insert into public.conversation_turns
    (client_id, session_id, profile_id, kind, keyword, lease_token, lease_until, unknown_wait_seconds, session_created, correlation_id,
     call_correlation_id)
  values (v_client_id, v_session_id, v_profile_id, 'keyword', v_keyword, v_token, v_now + v_lease, extract(epoch from v_wait)::integer, v_created,
    v_correlation, private.correlation_of_call(v_session_id))
  returning id into v_turn_id;
  update public.conversation_messages set turn_id = v_turn_id where id = v_message.id;
  if v_keyword in ('sms_only', 'whatsapp_only', 'both') then
    -- Whoever asks for a channel wants to be written to there.
    update public.profiles
       set allows_sms = allows_sms or v_keyword <> 'whatsapp_only',
           allows_sms_source = case when not allows_sms and v_keyword <> 'whatsapp_only' then 'keyword' else allows_sms_source end,
           allows_sms_at = case when not allows_sms and v_keyword <> 'whatsapp_only' then v_now else allows_sms_at end,
           notification_preferences = notification_preferences
             || jsonb_build_object('policy', v_keyword, 'policy_source', 'keyword', 'policy_at', v_now)
             || case when v_keyword <> 'sms_only' and not private.may_answer(id, 'whatsapp')
                  then jsonb_build_object('allows_whatsapp', true, 'allows_whatsapp_source', 'keyword', 'allows_whatsapp_at', v_now) else '{}' end,
           last_active_channel = v_channel
     where id = v_profile_id;
  elsif v_channel = 'sms' then
    update public.profiles
       set allows_sms = case v_keyword when 'stop' then false when 'start' then true else allows_sms end,
           allows_sms_source = case when v_keyword in ('stop', 'start') then 'keyword' else allows_sms_source end,
           allows_sms_at = case when v_keyword in ('stop', 'start') then v_now else allows_sms_at end,
           last_active_channel = 'sms'
     where id = v_profile_id;
  else
    update public.profiles
       set notification_preferences = case when v_keyword in ('stop', 'start')
             then notification_preferences || jsonb_build_object('allows_whatsapp', v_keyword = 'start',
               'allows_whatsapp_source', 'keyword', 'allows_whatsapp_at', v_now)
             else notification_preferences end,
           last_active_channel = 'whatsapp'
     where id = v_profile_id;
  end if;
  return private.turn_answer(v_turn_id, v_history, v_now);
end
$$;

revoke execute on function private.learn_whatsapp_block() from public, anon, authenticated;
grant execute on function private.learn_whatsapp_block() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012355'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
