-- 20261121012200_whatsapp_turns.sql
-- What people write on WhatsApp is answered in the same conversation: who they are there, whether they may be answered there, and
-- turns whose answer goes out where the newest message came in.
-- Safe to run again. Locks conversation_messages and conversation_turns for a moment, for one check each that looks at no row.
-- Undo: apply the functions of 20261121012014 again and drop the new ones.

-- `not valid`: to look at all rows here would keep everybody waiting; 20261121012210 does it without that.
do $$
declare
  v_check record;
begin
  for v_check in
    select * from (values
      ('public.conversation_messages', 'conversation_messages_handled_as_is_known', 'no_answer_wanted',
       'handled_as in (''answered'', ''suppressed'', ''opted_out'', ''rate_limited'', ''unknown'', ''abandoned'', ''no_answer_wanted'')'),
      ('public.conversation_turns', 'conversation_turns_keyword_is_known', 'sms_only',
       'keyword in (''stop'', ''start'', ''help'', ''sms_only'', ''whatsapp_only'', ''both'')')) as c (rel, name, added, rule)
  loop
    if not exists (select from pg_catalog.pg_constraint k where k.conrelid = v_check.rel::regclass and k.conname = v_check.name
                    and pg_catalog.pg_get_constraintdef(k.oid) like '%' || v_check.added || '%') then
      execute format('alter table %s drop constraint if exists %I', v_check.rel, v_check.name);
      execute format('alter table %s add constraint %I check (%s) not valid', v_check.rel, v_check.name, v_check.rule);
    end if;
  end loop;
end
$$;

-- The id that runs through a call, on the turns of the conversation that goes on from it.
alter table public.conversation_turns add column if not exists call_correlation_id text;
do $$
begin
  perform private.require_columns('public.conversation_turns', '{"call_correlation_id": "text"}');
end
$$;
comment on column public.conversation_turns.call_correlation_id is
  'Correlation id of the call that the conversation goes on from; null where there was none. The turn''s own is that of the message that began it.';

create or replace function private.correlation_of_call(p_session_id uuid) returns text
language plpgsql stable set search_path = '' as $$
begin
  return (select c.correlation_id from public.omnichannel_sessions s join public.voice_calls c on c.id = s.call_id where s.id = p_session_id);
end
$$;
comment on function private.correlation_of_call is 'The correlation id of the newest call of a conversation, or null.';

create or replace function private.may_answer(p_profile_id uuid, p_channel text) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  return coalesce((
    select case p_channel
      when 'sms' then p.allows_sms
      when 'whatsapp' then coalesce(case when jsonb_typeof(p.notification_preferences -> 'allows_whatsapp') = 'boolean'
        then (p.notification_preferences ->> 'allows_whatsapp')::boolean end, true)
      else true end
      from public.profiles p where p.id = p_profile_id), true);
end
$$;
comment on function private.may_answer is 'Whether a person has not said STOP on this channel.';

create or replace function private.profile_of_whatsapp(p_phone text, p_user_id text) returns uuid
language plpgsql stable set search_path = '' as $$
begin
  -- The number first: an opt-out and a call belong to it, and the user id changes with it.
  return coalesce(
    case when p_phone is not null then private.profile_of_phone(p_phone) end,
    (select i.profile_id from public.profile_identities i where i.kind = 'whatsapp_phone' and i.value = ltrim(p_phone, '+')),
    (select i.profile_id from public.profile_identities i where i.kind = 'whatsapp_user_id' and i.value = p_user_id));
end
$$;
comment on function private.profile_of_whatsapp is 'The profile of a WhatsApp sender, by number (E.164) or business-scoped user id, or null.';

create or replace function private.ensure_whatsapp_profile(p_phone text, p_user_id text) returns uuid
language plpgsql set search_path = '' as $$
declare
  v_id uuid := private.profile_of_whatsapp(p_phone, p_user_id);
begin
  if v_id is not null then
    return v_id;
  end if;
  if p_phone is not null then
    return private.ensure_profile(p_phone);
  end if;
  insert into public.profiles default values returning id into v_id;
  -- Of many at once one wins; the others wait here, find its row, and take theirs back.
  insert into public.profile_identities (profile_id, kind, value) values (v_id, 'whatsapp_user_id', p_user_id)
  on conflict (kind, value) do nothing;
  if not found then
    delete from public.profiles where id = v_id;
    select i.profile_id into strict v_id from public.profile_identities i where i.kind = 'whatsapp_user_id' and i.value = p_user_id;
  end if;
  return v_id;
end
$$;
comment on function private.ensure_whatsapp_profile is
  'The profile of a WhatsApp sender, created if there is none. Locks no existing row; private.name_whatsapp_sender, under the person''s lock, keeps the names.';

create or replace function private.name_whatsapp_sender(p_profile_id uuid, p_phone text, p_user_id text, p_display_name text) returns void
language plpgsql set search_path = '' as $$
declare
  v_before uuid;
begin
  if p_phone is not null then
    -- Who was known by an id alone has shown a number that nobody had: from now on it is theirs, for SMS and calls as well.
    if private.profile_of_phone(p_phone) is null then
      insert into public.profile_identities (profile_id, kind, value) values (p_profile_id, 'phone', p_phone) on conflict (kind, value) do nothing;
      update public.profiles set phone_number = p_phone where id = p_profile_id and phone_number is null;
    end if;
    insert into public.profile_identities (profile_id, kind, value) values (p_profile_id, 'whatsapp_phone', ltrim(p_phone, '+'))
    on conflict (kind, value) do nothing;
  end if;
  if p_user_id is not null then
    select i.profile_id into v_before from public.profile_identities i where i.kind = 'whatsapp_user_id' and i.value = p_user_id;
    if v_before is null then
      insert into public.profile_identities (profile_id, kind, value) values (p_profile_id, 'whatsapp_user_id', p_user_id)
      on conflict (kind, value) do nothing;
    elsif v_before <> p_profile_id then
      -- The number is somebody's whom we know already: the id names that person now, and a STOP said under it goes with it.
      update public.profile_identities set profile_id = p_profile_id where kind = 'whatsapp_user_id' and value = p_user_id;
      if not private.may_answer(v_before, 'whatsapp') then
        update public.profiles
           set notification_preferences = notification_preferences || jsonb_build_object('allows_whatsapp', false, 'allows_whatsapp_source', 'keyword')
         where id = p_profile_id;
      end if;
    end if;
  end if;
  update public.profiles set display_name = p_display_name where id = p_profile_id and display_name is null and p_display_name is not null;
end
$$;
comment on function private.name_whatsapp_sender is
  'Keeps every name that a WhatsApp sender is known by. The caller holds the person''s lock.';

create or replace function private.note_whatsapp_inbound(p_client_id uuid, p_profile_id uuid, p_session_id uuid, p_phone text, p_at timestamptz) returns void
language plpgsql set search_path = '' as $$
begin
  update public.profiles
     set last_whatsapp_inbound_at = greatest(last_whatsapp_inbound_at, p_at),
         has_whatsapp = case when has_whatsapp_at is null or has_whatsapp_at <= p_at then true else has_whatsapp end,
         has_whatsapp_source = case when has_whatsapp_at is null or has_whatsapp_at <= p_at then 'inbound' else has_whatsapp_source end,
         has_whatsapp_at = greatest(has_whatsapp_at, p_at)
   where id = p_profile_id;
  insert into public.wa_threads as t (client_id, profile_id, session_id, call_id, wa_id, last_inbound_at)
  select p_client_id, p_profile_id, s.id, s.call_id, ltrim(p_phone, '+'), p_at
    from public.omnichannel_sessions s where s.id = p_session_id
  on conflict (client_id, profile_id) do update
    set session_id = excluded.session_id, call_id = coalesce(excluded.call_id, t.call_id), wa_id = coalesce(excluded.wa_id, t.wa_id),
        last_inbound_at = greatest(t.last_inbound_at, excluded.last_inbound_at);
end
$$;
comment on function private.note_whatsapp_inbound is
  'Somebody wrote on WhatsApp: opens the service window, is evidence of WhatsApp, and keeps the chat''s row in wa_threads.';

-- A person who shares no number is written to by user id.
create or replace function private.profile_json(p_profile_id uuid, p_phone text, p_now timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object(
      'id', p.id, 'phone_number', coalesce(p_phone, p.phone_number),
      'wa_id', coalesce(
        (select i.value from public.profile_identities i where i.profile_id = p.id and i.kind = 'whatsapp_phone' order by i.created_at desc limit 1),
        nullif(split_part(p.whatsapp_jid, '@', 1), '')),
      'whatsapp_user_id', (select i.value from public.profile_identities i where i.profile_id = p.id and i.kind = 'whatsapp_user_id' order by i.created_at desc limit 1),
      'display_name', p.display_name,
      'whatsapp', private.whatsapp_evidence(p.has_whatsapp, p.has_whatsapp_source, p.has_whatsapp_at, p_now),
      'allows_sms', p.allows_sms, 'locale', p.locale, 'last_whatsapp_inbound_at', p.last_whatsapp_inbound_at,
      'preferences', p.notification_preferences)
      from public.profiles p where p.id = p_profile_id);
end
$$;

create or replace function private.turn_answer(p_turn_id uuid, p_history_limit integer, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_turn public.conversation_turns;
  v_session public.omnichannel_sessions;
  v_profile jsonb;
  v_summary jsonb;
  v_messages jsonb;
  v_history jsonb;
  v_wanted text[] := array['mtn', 'openai'];
  v_from text;
  v_channel text;
begin
  select * into strict v_turn from public.conversation_turns where id = p_turn_id;
  select * into strict v_session from public.omnichannel_sessions where id = v_turn.session_id;
  -- The answer goes to the number that wrote, which need not be the profile's own.
  select m.channel, d.sender into v_channel, v_from
    from public.conversation_messages m left join public.message_delivery_log d on d.message_id = m.id and d.direction = 'inbound'
   where m.turn_id = p_turn_id and m.direction = 'inbound'
   order by private.may_answer(v_turn.profile_id, m.channel) desc, m.seq desc limit 1;
  v_profile := private.profile_json(v_turn.profile_id, case when private.is_e164(v_from) then v_from end, p_now)
    -- Who wrote on WhatsApp is answered under the very name that wrote.
    || jsonb_build_object('whatsapp_to', case v_channel when 'whatsapp' then v_from end);
  if v_profile ->> 'whatsapp' = 'yes' or v_channel = 'whatsapp' then
    v_wanted := v_wanted || 'whatsapp'::text;
  end if;
  if v_turn.kind = 'keyword' then
    v_wanted := array[case v_channel when 'whatsapp' then 'whatsapp' else 'mtn' end];
  end if;
  if v_session.call_id is not null then
    select jsonb_build_object('headline', s.headline, 'points', s.points, 'next_step', s.next_step, 'language', s.language, 'call_ended_at', c.ended_at)
      into v_summary
      from public.call_summaries s join public.voice_calls c on c.id = s.call_id
     where s.call_id = v_session.call_id;
  end if;
  select coalesce(jsonb_agg(jsonb_build_object('id', m.id, 'text', m.content, 'channel', m.channel, 'received_at', m.occurred_at) order by m.seq), '[]')
    into v_messages
    from public.conversation_messages m
   where m.turn_id = p_turn_id and m.direction = 'inbound';
  select coalesce(jsonb_agg(jsonb_build_object('role', h.role, 'channel', h.channel, 'text', h.content, 'at', h.occurred_at, 'language', h.language) order by h.seq), '[]')
    into v_history
    from (
      select m.seq, m.role, m.channel, m.content, m.occurred_at, m.language
        from public.conversation_messages m
       where m.session_id = v_turn.session_id and m.kind <> 'keyword' and m.handled_at is not null and m.turn_id is distinct from p_turn_id
       order by m.seq desc limit p_history_limit
    ) h;
  return jsonb_build_object(
    'decision', 'go',
    'kind', v_turn.kind,
    'keyword', v_turn.keyword,
    'channel', coalesce(v_channel, 'sms'),
    'turn_id', v_turn.id,
    'claims', v_turn.claims,
    'possible_duplicate', v_turn.possible_duplicate,
    'already_sent', to_jsonb(private.sent_channels(v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id)),
    'correlation_id', v_turn.correlation_id,
    'call_correlation_id', v_turn.call_correlation_id,
    'session', private.session_json(v_turn.session_id, v_turn.session_created),
    'profile', v_profile,
    'client', private.client_json(v_turn.client_id),
    'agent', private.agent_json(v_turn.client_id, v_session.last_agent_id),
    'call_summary', v_summary,
    'language_hint', (select m.language from public.conversation_messages m
                       where m.turn_id = p_turn_id and m.direction = 'inbound' and m.language is not null order by m.seq desc limit 1),
    'messages', v_messages,
    'history', v_history,
    'delivery_ids', jsonb_build_object('sms', v_turn.sms_delivery_id, 'whatsapp', v_turn.whatsapp_delivery_id),
    'attempt', v_turn.attempt,
    'providers', private.provider_gates(v_wanted, v_turn.lease_token, p_now));
end
$$;

create or replace function private.claim_turn(
  p_session_id uuid, p_mode text, p_turn_id uuid, p_created boolean, p_token uuid, p_correlation_id text,
  p_lease interval, p_wait interval, p_history_limit integer, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
  v_session public.omnichannel_sessions;
  v_turn public.conversation_turns;
  v_judged text;
  v_silenced boolean;
begin
  select * into strict v_session from public.omnichannel_sessions where id = p_session_id;
  for v_turn in
    select * from public.conversation_turns t
     where t.profile_id = v_session.profile_id and t.client_id = v_session.client_id and t.status in ('open', 'released')
       and (t.kind = 'conversation' or p_mode = 'session' or t.id = p_turn_id)
     order by (t.kind = 'keyword') desc, t.created_at
       for no key update
  loop
    v_judged := private.judge_claim(v_turn.status, v_turn.lease_token, v_turn.lease_until, v_turn.next_attempt_at, v_turn.attempt, p_token, p_wait, p_now);
    if v_judged in ('wait', 'again', 'dead') and cardinality(private.record_carried(v_turn.client_id, v_turn.session_id, v_turn.profile_id,
         (select s.call_id from public.omnichannel_sessions s where s.id = v_turn.session_id), v_turn.id, v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id,
         case v_turn.kind when 'keyword' then 'keyword' else 'reply' end, v_turn.correlation_id, 'turn:' || v_turn.id, p_now)) > 0 then
      -- The holder is gone, but a provider reported on its message: that was the answer.
      update public.conversation_turns set previous_lease_token = lease_token where id = v_turn.id;
      perform private.close_turn(v_turn.id, 'answered', p_now);
      continue;
    end if;
    if v_judged = 'dead' then
      perform private.close_turn(v_turn.id, 'unknown', p_now);
      perform private.give_up('sms-inbound', 'turn:' || v_turn.id, jsonb_build_object('session_id', v_turn.session_id, 'turn_id', v_turn.id),
        v_turn.attempt::integer, 'crashed_twice', v_turn.correlation_id, v_turn.client_id);
      continue;
    end if;
    if v_judged = 'free' and v_turn.claims >= 50 then
      perform private.close_turn(v_turn.id, 'abandoned', p_now);
      perform private.give_up('sms-inbound', 'turn:' || v_turn.id, jsonb_build_object('session_id', v_turn.session_id, 'turn_id', v_turn.id),
        v_turn.claims, 'given_back_too_often', v_turn.correlation_id, v_turn.client_id);
      continue;
    end if;
    if v_judged in ('free', 'later', 'again') and v_turn.kind = 'conversation' and not exists (
         select from public.conversation_messages m
          where m.session_id = v_turn.session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation'
            and (m.turn_id = v_turn.id or m.turn_id is null) and private.may_answer(v_turn.profile_id, m.channel)) then
      perform private.close_turn(v_turn.id, 'suppressed', p_now);
      continue;
    end if;
    -- A new message may be answered although an earlier try asked for a pause.
    if v_judged = 'later' and (p_mode = 'new' or v_turn.kind = 'keyword' and v_turn.id = p_turn_id) then
      v_judged := 'free';
    end if;
    case v_judged
      when 'live' then
        if v_turn.kind = 'keyword' and p_mode = 'session' then
          continue;
        end if;
        return case p_mode
          when 'new' then jsonb_build_object('decision', 'stored')
          when 'known' then jsonb_build_object('decision', 'duplicate')
          else jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_turn.lease_until, p_now)) end;
      when 'later' then
        return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_turn.next_attempt_at, p_now));
      when 'wait' then
        return jsonb_build_object('decision', 'wait_unknown', 'retry_after_s', private.seconds_until(v_turn.lease_until + p_wait, p_now));
      when 'mine' then
        -- Asked again under the same token, because the answer was lost or to take up the rest of a burst.
        update public.conversation_turns set lease_until = p_now + p_lease where id = v_turn.id;
      when 'free' then
        update public.conversation_turns
           set status = 'open', lease_token = p_token, lease_until = p_now + p_lease, claims = claims + 1, next_attempt_at = null, result = null
         where id = v_turn.id;
      when 'again' then
        update public.conversation_turns
           set previous_lease_token = lease_token, lease_token = p_token, lease_until = p_now + p_lease,
               claims = claims + 1, attempt = 2, possible_duplicate = true
         where id = v_turn.id;
    end case;
    if v_turn.kind = 'conversation' then
      update public.conversation_messages set turn_id = v_turn.id
       where session_id = v_turn.session_id and direction = 'inbound' and handled_at is null and kind = 'conversation' and turn_id is null;
    end if;
    return private.turn_answer(v_turn.id, p_history_limit, p_now);
  end loop;

  update public.conversation_messages m set handled_at = p_now, handled_as = 'opted_out'
   where m.session_id = p_session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation'
     and not private.may_answer(m.profile_id, m.channel);
  v_silenced := found;
  if not exists (
    select from public.conversation_messages m
     where m.session_id = p_session_id and m.direction = 'inbound' and m.handled_at is null and m.kind = 'conversation'
  ) then
    return jsonb_build_object('decision', case when v_silenced then 'opted_out' when p_mode = 'session' then 'nothing' else 'duplicate' end);
  end if;
  insert into public.conversation_turns
    (client_id, session_id, profile_id, kind, lease_token, lease_until, unknown_wait_seconds, session_created, correlation_id, call_correlation_id)
  values (v_session.client_id, p_session_id, v_session.profile_id, 'conversation', p_token, p_now + p_lease, extract(epoch from p_wait)::integer,
    p_created, p_correlation_id, private.correlation_of_call(p_session_id))
  returning * into v_turn;
  update public.conversation_messages set turn_id = v_turn.id
   where session_id = p_session_id and direction = 'inbound' and handled_at is null and kind = 'conversation';
  return private.turn_answer(v_turn.id, p_history_limit, p_now);
end
$$;

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

comment on function public.begin_sms_turn is
  'RPC: stores an inbound message (SMS, or WhatsApp where channel says so) once, claims what is unanswered in its session and returns all context, or says why not. Without a message: claims a session again.';
comment on column public.conversation_turns.kind is 'conversation: what is unanswered in a session; keyword: one STOP, START or HELP, or the choice of a channel.';
comment on column public.profiles.notification_preferences is
  '{policy: both | sms_only | whatsapp_only | none, mirror_replies, allows_whatsapp}, policy and allows_whatsapp with their _source and _at; a missing key: the client''s default.';

create or replace view public.v_channel_choices with (security_invoker = true) as
  select s.client_id, coalesce(p.notification_preferences ->> 'policy', c.default_policy) as policy,
         p.notification_preferences ? 'policy' as chosen, p.notification_preferences ->> 'policy_source' as source,
         count(distinct p.id) as people,
         count(m.id) filter (where m.channel = 'sms') as replies_by_sms,
         count(m.id) filter (where m.channel = 'whatsapp') as replies_on_whatsapp
    from public.omnichannel_sessions s
    join public.profiles p on p.id = s.profile_id
    join public.clients c on c.id = s.client_id
    left join public.conversation_messages m on m.session_id = s.id and m.direction = 'inbound'
   group by 1, 2, 3, 4;
comment on view public.v_channel_choices is
  'How many people of a client are written to by which policy, whether they chose it and where, and on which channels they reply.';
comment on column public.v_channel_choices.policy is 'both, sms_only, whatsapp_only or none: the person''s, else the client''s.';
comment on column public.v_channel_choices.chosen is 'The person chose it.';
comment on column public.v_channel_choices.source is 'Where: keyword, ...; null where nobody chose.';
comment on column public.v_channel_choices.people is 'How many have a conversation with the client.';
comment on column public.v_channel_choices.replies_by_sms is 'Messages that they wrote by SMS.';
comment on column public.v_channel_choices.replies_on_whatsapp is 'Messages that they wrote on WhatsApp.';
revoke all on public.v_channel_choices from public, anon, authenticated;
grant select on public.v_channel_choices to authenticated, service_role;

revoke execute on function private.correlation_of_call(uuid), private.may_answer(uuid, text), private.profile_of_whatsapp(text, text), private.ensure_whatsapp_profile(text, text), private.name_whatsapp_sender(uuid, text, text, text),
  private.note_whatsapp_inbound(uuid, uuid, uuid, text, timestamptz) from public, anon, authenticated;
grant execute on function private.correlation_of_call(uuid), private.may_answer(uuid, text), private.profile_of_whatsapp(text, text), private.ensure_whatsapp_profile(text, text), private.name_whatsapp_sender(uuid, text, text, text),
  private.note_whatsapp_inbound(uuid, uuid, uuid, text, timestamptz) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012200'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
