-- 20261121012600_limits_at_the_edge.sql
-- What the edge found to be too much, of one sender or of numbers that begin alike, is stored and not answered, with an alert.
-- Safe to run again. Locks conversation_messages for a moment, for a comment. Undo: apply begin_sms_turn of 20261121012355 again and drop the new functions.

create or replace function private.is_over_limit(p_message public.conversation_messages) returns boolean
language sql immutable parallel safe set search_path = '' as $$
  select coalesce(p_message.handled_as = 'rate_limited' and p_message.routing -> 'reasons' ->> 0 in ('edge_sender_limit', 'edge_prefix_limit'), false)
$$;
comment on function private.is_over_limit is 'Whether a message was left unanswered because of the edge''s limits.';

create or replace function private.store_over_limit(p_message_id uuid, p_over text, p_from text, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
  v_channel text;
  v_of text := case when p_over = 'prefix' and private.is_e164(p_from) then left(p_from, 7) else 'sender' end;
  v_hour timestamptz := date_bin('1 hour', p_now, '2000-01-01 00:00:00+00');
begin
  update public.conversation_messages
     set handled_at = p_now, handled_as = 'rate_limited',
         routing = jsonb_build_object('channels', '[]'::jsonb, 'suppressed', jsonb_build_array(jsonb_build_object('channel', channel, 'reason', 'rate_limited')),
           'reasons', jsonb_build_array(case p_over when 'prefix' then 'edge_prefix_limit' else 'edge_sender_limit' end))
   where id = p_message_id
  returning channel into v_channel;
  -- Last: an alert is locked until the end of the transaction. Whose number it is stands in none.
  perform private.raise_alert('inbound_flood', 'warning', format('inbound_flood:%s:%s:%s', v_channel, v_of, to_char(v_hour at time zone 'UTC', 'YYYY-MM-DD"T"HH24')),
    'More was written to us in a minute than SENDER_LIMIT or PREFIX_LIMIT allows; it is stored and not answered: a flood, or a limit that is too low?',
    jsonb_build_object('channel', v_channel, 'of', v_of, 'since', v_hour));
end
$$;
comment on function private.store_over_limit is
  'A message that the edge counted over a limit: kept, its answer suppressed with the reason in routing, and told once an hour.';

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
  -- The edge counted too many: of this sender, or of all numbers that begin like this one.
  v_over text := nullif(p ->> 'over_limit', '');
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
    -- The edge counts copies as well, and the queue keeps no order: one that came within the limit is answered, whichever is first.
    if v_over is null and private.is_over_limit(v_message) and v_message.kind = 'conversation' and v_message.handled_at > v_now - interval '10 minutes' then
      perform private.lock_person(v_message.client_id, v_message.profile_id);
      update public.conversation_messages m set handled_at = null, handled_as = null, routing = null
       where m.id = v_message.id and private.is_over_limit(m)
      returning * into v_message;
      if not found then
        select * into strict v_message from public.conversation_messages where id = v_message.id;
      end if;
    end if;
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

  if v_over is not null and (v_keyword is distinct from 'stop' or v_over = 'prefix' and v_channel = 'sms') then
    -- A STOP is obeyed whoever floods, but where many numbers do, each confirmation would be an SMS that somebody is paid for.
    if v_keyword = 'stop' then
      update public.profiles set allows_sms = false, allows_sms_source = 'keyword', allows_sms_at = v_now where id = v_profile_id and allows_sms;
    end if;
    perform private.store_over_limit(v_message.id, v_over, v_from, v_now);
    return jsonb_build_object('decision', 'rate_limited');
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

comment on column public.conversation_messages.routing is
  'Of what we sent: over which channels and why. Of what was written to us and not answered for the edge''s limits: the answer that was suppressed, and why.';

revoke execute on function private.is_over_limit(public.conversation_messages), private.store_over_limit(uuid, text, text, timestamptz)
  from public, anon, authenticated;
grant execute on function private.is_over_limit(public.conversation_messages), private.store_over_limit(uuid, text, text, timestamptz)
  to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012600'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
