-- 20261121016000_agents_chosen.sql
-- Several agents, and which of them answers: the number's own, the session's, the one that knew last, the one for what is asked.
-- What an agent is told comes from files (agents/) and is known by its hash, which stands with every call and turn.
-- Safe to run again. Locks ai_agents, conversation_messages, conversation_turns and voice_calls for a moment (columns without a rewrite,
-- but for the hash of ai_agents, a small table). Undo: drop the triggers, functions and columns, and apply private.agent_json of
-- 20261121010300, private.turn_answer of 20261121012530 and public.begin_sms_turn of 20261121012600.
alter table public.ai_agents add column if not exists purpose text;
alter table public.ai_agents add column if not exists intents text[] not null default '{}';
alter table public.ai_agents add column if not exists hand_over jsonb not null default '{}';
alter table public.ai_agents add column if not exists voice text;
alter table public.ai_agents add column if not exists loaded_hash text;
alter table public.ai_agents add column if not exists content_hash text not null generated always as (
  md5(instructions::text || voice_instructions::text || tools::text || voice_tools::text || hand_over::text || coalesce(model, '') || '/'
      || coalesce(voice, '') || '/' || coalesce(purpose, ''))) stored;
alter table public.conversation_messages add column if not exists intent text;
alter table public.conversation_turns add column if not exists agent_id uuid;
alter table public.conversation_turns add column if not exists agent_reason text;
alter table public.conversation_turns add column if not exists agent_hash text;
alter table public.voice_calls add column if not exists agent_reason text;
alter table public.voice_calls add column if not exists agent_hash text;
do $$
begin
  perform private.require_columns('public.ai_agents', '{
    "purpose": "text", "intents": "text[]", "hand_over": "jsonb", "voice": "text", "loaded_hash": "text", "content_hash": "text"}');
  perform private.require_columns('public.conversation_messages', '{"intent": "text"}');
  perform private.require_columns('public.conversation_turns', '{"agent_id": "uuid", "agent_reason": "text", "agent_hash": "text"}');
  perform private.require_columns('public.voice_calls', '{"agent_reason": "text", "agent_hash": "text"}');
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.ai_agents'::regclass and conname = 'ai_agents_hand_over_is_object') then
    alter table public.ai_agents add constraint ai_agents_hand_over_is_object check (jsonb_typeof(hand_over) = 'object');
  end if;
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.conversation_turns'::regclass and conname = 'conversation_turns_agent_id_fkey') then
    alter table public.conversation_turns add constraint conversation_turns_agent_id_fkey
      foreign key (agent_id) references public.ai_agents (id) on delete set null;
  end if;
end
$$;
create index if not exists idx_conversation_turns_agent on public.conversation_turns (agent_id) where agent_id is not null;
comment on column public.ai_agents.purpose is 'What it is for, in a sentence, for people and for other agents.';
comment on column public.ai_agents.intents is 'What it knows about: housing, ride, support (shared/core, intent.rs). Empty: a general agent.';
comment on column public.ai_agents.hand_over is '{agents: [slugs it may hand a conversation over to], human: whether it may call a person}.';
comment on column public.ai_agents.voice is 'The model''s voice in calls; null: the configured one.';
comment on column public.ai_agents.content_hash is 'Of what it is told and may do: names the version in calls and turns.';
comment on column public.ai_agents.loaded_hash is 'content_hash as the files last made it; another one now: somebody edited the row, and it is left alone.';
comment on column public.conversation_messages.intent is 'What its words are about, where they say so: housing, ride, support.';
comment on column public.conversation_turns.agent_id is 'Who answers.';
comment on column public.conversation_turns.agent_reason is 'Why that one: number, session, last_agent, handed_over, intent, understood (by a model before), default.';
comment on column public.conversation_turns.agent_hash is 'content_hash of the agent then.';
comment on column public.voice_calls.agent_reason is 'Why that agent: number, last_agent or default.';
comment on column public.voice_calls.agent_hash is 'content_hash of the agent then.';

create or replace function private.agent_of_number(p_client_id uuid, p_channel text, p_address text) returns uuid
language plpgsql stable set search_path = '' as $$
begin
  return (
    select a.id
      from public.client_numbers n
      join public.agent_deployments d on d.id = n.deployment_id and d.client_id = n.client_id
      join public.ai_agents a on a.id = d.agent_id and a.is_active and (a.client_id is null or a.client_id = n.client_id)
     where n.channel = p_channel and n.address = p_address and n.client_id = p_client_id);
end
$$;
comment on function private.agent_of_number is 'The agent that a number or sender is for; null: none in particular.';

create or replace function private.agent_for_intent(p_client_id uuid, p_intent text) returns public.ai_agents
language plpgsql stable set search_path = '' as $$
declare
  v_agent public.ai_agents;
begin
  select a.* into v_agent from public.ai_agents a
   where p_intent = any (a.intents) and a.is_active and (a.client_id is null or a.client_id = p_client_id)
   order by a.client_id nulls last, a.slug limit 1;
  return v_agent;
end
$$;
comment on function private.agent_for_intent is 'Who knows about it: a client''s own agent before the shared one.';

create or replace function private.choose_agent(p_turn public.conversation_turns, out agent_id uuid, out reason text)
language plpgsql stable set search_path = '' as $$
declare
  v_session public.omnichannel_sessions;
  v_last public.ai_agents;
  v_for public.ai_agents;
  v_channel text;
  v_address text;
  v_intent text;
begin
  select * into strict v_session from public.omnichannel_sessions where id = p_turn.session_id;
  select m.channel, d.recipient into v_channel, v_address
    from public.conversation_messages m left join public.message_delivery_log d on d.message_id = m.id and d.direction = 'inbound'
   where m.turn_id = p_turn.id and m.direction = 'inbound' order by m.seq desc limit 1;
  agent_id := private.agent_of_number(p_turn.client_id, v_channel, v_address);
  reason := 'number';
  if agent_id is not null then
    return;
  end if;
  select a.id into agent_id from public.ai_agents a
   where a.slug = v_session.context ->> 'agent' and a.is_active and (a.client_id is null or a.client_id = p_turn.client_id)
   order by a.client_id nulls last limit 1;
  reason := 'session';
  if agent_id is not null then
    return;
  end if;
  select m.intent into v_intent from public.conversation_messages m
   where m.turn_id = p_turn.id and m.direction = 'inbound' and m.intent is not null order by m.seq desc limit 1;
  select a.* into v_last from public.ai_agents a where a.id = v_session.last_agent_id and a.is_active;
  v_for := private.agent_for_intent(p_turn.client_id, v_intent);
  -- Who knows something special keeps the conversation, until it is clearly about what another knows.
  if v_last.intents <> '{}' then
    if v_for.id <> v_last.id and v_last.hand_over -> 'agents' ? v_for.slug then
      agent_id := v_for.id;
      reason := 'handed_over';
    else
      agent_id := v_last.id;
      reason := 'last_agent';
    end if;
    return;
  end if;
  if v_for.id is not null then
    agent_id := v_for.id;
    reason := 'intent';
    return;
  end if;
  v_for := private.agent_for_intent(p_turn.client_id, v_session.last_intent);
  agent_id := coalesce(v_for.id, v_last.id);
  reason := case when v_for.id is not null then 'understood' when v_last.id is not null then 'last_agent' else 'default' end;
end
$$;
comment on function private.choose_agent is
  'Who answers a turn, and why: the number''s agent, the session''s (context.agent), the one that knew last unless it hands over, the one for what the words are about or for what a model understood before, the general one. No id: the general one.';

create or replace function private.agent_json(p_client_id uuid, p_last_agent_id uuid, p_slug text default 'call-center') returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (
    select jsonb_build_object('id', a.id, 'slug', a.slug, 'model', a.model, 'tools', a.tools, 'hash', a.content_hash,
             'instructions', (select coalesce(jsonb_object_agg(i.key, replace(i.value, '{brand}', c.brand)), '{}') from jsonb_each_text(a.instructions) i))
      from public.ai_agents a join public.clients c on c.id = p_client_id
     where a.is_active and (a.client_id is null or a.client_id = p_client_id) and (a.id = p_last_agent_id or a.slug = p_slug)
     order by (a.id = p_last_agent_id) desc nulls last, a.client_id nulls last
     limit 1);
end
$$;

create or replace function private.agent_of_turn(p_turn public.conversation_turns) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_choice record;
  v_agent jsonb;
begin
  if p_turn.agent_id is not null then
    v_agent := private.agent_json(p_turn.client_id, p_turn.agent_id);
    if v_agent ->> 'id' = p_turn.agent_id::text then
      return v_agent || jsonb_build_object('reason', p_turn.agent_reason);
    end if;
  end if;
  select * into v_choice from private.choose_agent(p_turn);
  v_agent := private.agent_json(p_turn.client_id, v_choice.agent_id);
  update public.conversation_turns
     set agent_id = (v_agent ->> 'id')::uuid, agent_reason = v_choice.reason, agent_hash = v_agent ->> 'hash'
   where id = p_turn.id;
  return v_agent || jsonb_build_object('reason', v_choice.reason);
end
$$;
comment on function private.agent_of_turn is 'The agent of a turn, chosen when it is first asked for and kept when the turn is claimed again.';

create or replace function private.note_agent_of_call() returns trigger
language plpgsql set search_path = '' as $$
begin
  if tg_op = 'INSERT' and new.agent_id is null then
    new.agent_id := private.agent_of_number(new.client_id, 'voice', case new.direction when 'outbound' then new.from_number else new.to_number end);
    new.agent_reason := case when new.agent_id is not null then 'number' end;
  end if;
  if new.agent_id is not null and (tg_op = 'INSERT' or new.agent_id is distinct from old.agent_id) then
    new.agent_reason := coalesce(new.agent_reason, case when exists (
      select from public.omnichannel_sessions s where s.id = new.session_id and s.last_agent_id = new.agent_id) then 'last_agent' else 'default' end);
    new.agent_hash := (select a.content_hash from public.ai_agents a where a.id = new.agent_id);
  end if;
  return new;
end
$$;
comment on function private.note_agent_of_call is 'Trigger: the agent that the number is for, why a call has its agent, and the version of what that agent is told.';
drop trigger if exists voice_calls_note_agent on public.voice_calls;
create trigger voice_calls_note_agent before insert or update of agent_id on public.voice_calls
  for each row execute function private.note_agent_of_call();

-- The agent that came with the migrations is as if it had been loaded, unless somebody edited it.
update public.ai_agents a
   set loaded_hash = case when md5(a.instructions::text || a.voice_instructions::text) = '1091c9dee337458fe3bcae9a9c4ffcfa'
                           and a.tools = to_jsonb(array_remove(private.tool_names(), 'end_call')) and a.voice_tools = to_jsonb(private.tool_names())
                       then a.content_hash else 'edited' end
 where a.client_id is null and a.slug = 'call-center' and a.loaded_hash is null;

create or replace function private.load_agent(p jsonb) returns text
language plpgsql set search_path = '' as $$
declare
  v_row public.ai_agents;
  v_before text;
begin
  select * into v_row from public.ai_agents where client_id is null and slug = private.required(p, 'slug') for update;
  if found and v_row.content_hash is distinct from v_row.loaded_hash and v_row.loaded_hash is not null
     and not coalesce((p ->> 'overwrite')::boolean, false) then
    return 'edited';
  end if;
  v_before := v_row.content_hash;
  insert into public.ai_agents as a
    (slug, display_name, purpose, intents, hand_over, model, voice, instructions, voice_instructions, tools, voice_tools)
  values
    (p ->> 'slug', p ->> 'display_name', p ->> 'purpose', array(select jsonb_array_elements_text(coalesce(p -> 'intents', '[]'))),
     coalesce(p -> 'hand_over', '{}'), p ->> 'model', p ->> 'voice', coalesce(p -> 'instructions', '{}'), coalesce(p -> 'voice_instructions', '{}'),
     coalesce(p -> 'tools', '[]'), coalesce(p -> 'voice_tools', '[]'))
  on conflict ((coalesce(client_id, '00000000-0000-0000-0000-000000000000')), slug) do update
    set display_name = excluded.display_name, purpose = excluded.purpose, intents = excluded.intents, hand_over = excluded.hand_over,
        model = excluded.model, voice = excluded.voice, instructions = excluded.instructions, voice_instructions = excluded.voice_instructions,
        tools = excluded.tools, voice_tools = excluded.voice_tools
  returning * into v_row;
  update public.ai_agents set loaded_hash = content_hash where id = v_row.id and loaded_hash is distinct from content_hash;
  return case when v_before is null then 'new' when v_before = v_row.content_hash then 'same' else 'changed' end;
end
$$;
comment on function private.load_agent is
  'Takes a shared agent over from its files: new, changed or same; edited, where somebody changed the row since and nothing says to overwrite it.';

create or replace function private.turn_answer(p_turn_id uuid, p_history_limit integer, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_turn public.conversation_turns;
  v_profile jsonb;
  v_summary jsonb;
  v_messages jsonb;
  v_history jsonb;
  v_wanted text[] := array['mtn', 'openai'];
  v_from text;
  v_channel text;
  v_answer jsonb;
begin
  select * into strict v_turn from public.conversation_turns where id = p_turn_id;
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
  v_summary := private.summary_known_to(v_turn.session_id);
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
  v_answer := jsonb_build_object(
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
    'agent', private.agent_of_turn(v_turn),
    'call_summary', v_summary,
    'known', case v_turn.kind when 'conversation' then jsonb_build_object('requests', private.open_requests(v_turn.client_id, v_turn.profile_id),
      'bookings', private.open_bookings(v_turn.client_id, v_turn.profile_id), 'memories', private.memories_of(v_turn.client_id, v_turn.profile_id, p_now)) end,
    'language_hint', (select m.language from public.conversation_messages m
                       where m.turn_id = p_turn_id and m.direction = 'inbound' and m.language is not null order by m.seq desc limit 1),
    'messages', v_messages,
    'history', v_history,
    'delivery_ids', jsonb_build_object('sms', v_turn.sms_delivery_id, 'whatsapp', v_turn.whatsapp_delivery_id),
    'attempt', v_turn.attempt,
    'providers', private.provider_gates(v_wanted, v_turn.lease_token, p_now));
  -- Last of all, for its locks. STOP is confirmed whatever it costs.
  return v_answer || jsonb_build_object('guards', private.guards_of_work(v_turn.client_id, v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id,
    v_profile, case v_turn.kind when 'keyword' then 'keyword' else 'reply' end, v_turn.keyword is not distinct from 'stop', p_now));
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
      (client_id, thread_id, session_id, profile_id, call_id, direction, role, channel, kind, content, language, intent, provider, provider_message_id,
       correlation_id, occurred_at, reported_at)
    select v_client_id, t.id, v_session_id, v_profile_id, t.call_id, 'inbound', 'user', v_channel,
           case when v_keyword is null then 'conversation' else 'keyword' end, coalesce(p ->> 'text', ''), p ->> 'language_hint', nullif(p ->> 'intent_hint', ''),
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

revoke execute on function private.agent_of_number(uuid, text, text), private.agent_for_intent(uuid, text),
  private.choose_agent(public.conversation_turns), private.agent_of_turn(public.conversation_turns), private.note_agent_of_call(),
  private.load_agent(jsonb) from public, anon, authenticated;
grant execute on function private.agent_of_number(uuid, text, text), private.agent_for_intent(uuid, text),
  private.choose_agent(public.conversation_turns), private.agent_of_turn(public.conversation_turns), private.note_agent_of_call(),
  private.load_agent(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121016000'::text $$;

notify pgrst, 'reload schema';
