-- 20261121017000_memories_taken.sql
-- What is worth remembering is taken out of a conversation when it is over: of a call by the question that writes its summary, of messages
-- half an hour after the last answer, by a question of its own. Whoever said STOP has nothing taken out of what they say, and what a
-- conversation was asked to forget is not taken out of it again.
-- Safe to run again. Locks voice_memories (a column with a constant default) and conversation_turns (a trigger) for a moment. Undo: drop the
-- triggers, the new functions, the table and the column; apply finish_call_notification of 20261121012630, guarded_notification of
-- 20261121012340 and sweep of 20261121013200 again.
alter table public.voice_memories add column if not exists kind text not null default 'fact';
do $$
begin
  perform private.require_columns('public.voice_memories', '{"kind": "text"}');
  if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.voice_memories'::regclass and conname = 'voice_memories_kind_is_known') then
    alter table public.voice_memories add constraint voice_memories_kind_is_known check (kind in ('preference', 'fact'));
  end if;
end
$$;
comment on column public.voice_memories.kind is 'preference: what they like; fact: what is so.';

create table if not exists public.memory_extractions (
  session_id uuid constraint memory_extractions_pkey primary key
    constraint memory_extractions_session_id_fkey references public.omnichannel_sessions (id) on delete cascade,
  client_id uuid not null constraint memory_extractions_client_id_fkey references public.clients (id),
  profile_id uuid not null constraint memory_extractions_profile_id_fkey references public.profiles (id) on delete cascade,
  read_seq bigint not null default 0,
  due_at timestamptz,
  lease_token uuid,
  lease_until timestamptz,
  tries smallint not null default 0,
  given_up text,
  kept integer not null default 0,
  swept_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint memory_extractions_given_up_is_a_code check (given_up ~ '^[a-z][a-z_]{2,59}$')
);
do $$
begin
  perform private.require_columns('public.memory_extractions', '{
    "session_id": "uuid", "client_id": "uuid", "profile_id": "uuid", "read_seq": "bigint", "due_at": "timestamp with time zone", "lease_token": "uuid",
    "lease_until": "timestamp with time zone", "tries": "smallint", "given_up": "text", "kept": "integer", "swept_at": "timestamp with time zone",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_memory_extractions_due on public.memory_extractions (due_at) where due_at is not null;
create index if not exists idx_memory_extractions_client on public.memory_extractions (client_id);
create index if not exists idx_memory_extractions_profile on public.memory_extractions (profile_id);
comment on table public.memory_extractions is 'How far conversations in writing were read for what is worth remembering, and when that is due again.';
comment on column public.memory_extractions.read_seq is 'Of the newest message that was read; what comes after it is not.';
comment on column public.memory_extractions.due_at is 'Half an hour after the last answer; while somebody is at it, when their lease ends; null: nothing to read.';
comment on column public.memory_extractions.lease_token is 'Of whoever is at it.';
comment on column public.memory_extractions.lease_until is 'Until when they have the time for it.';
comment on column public.memory_extractions.tries is 'Times it was begun since the last answer.';
comment on column public.memory_extractions.given_up is 'Why it was left after the third try, as code; null: it was not. The next answer makes it due again.';
comment on column public.memory_extractions.kept is 'Memories that came of it, new or said again.';
comment on column public.memory_extractions.swept_at is 'When a sweep last asked for it.';
drop trigger if exists memory_extractions_touch on public.memory_extractions;
create trigger memory_extractions_touch before update on public.memory_extractions for each row execute function private.touch_updated_at();
alter table public.memory_extractions enable row level security;
drop policy if exists memory_extractions_select on public.memory_extractions;
create policy memory_extractions_select on public.memory_extractions for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
revoke all on public.memory_extractions from public, anon, authenticated;
grant select on public.memory_extractions to authenticated;
grant select, insert, update, delete on public.memory_extractions to service_role;

create or replace function private.memory_keys(p_client_id uuid, p_profile_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return (select coalesce(jsonb_agg(m.key order by m.key), '[]') from public.voice_memories m where m.client_id = p_client_id and m.profile_id = p_profile_id);
end
$$;
comment on function private.memory_keys is 'Names of what is remembered of a person (at most 50), so that a model uses them again.';

create or replace function private.memory_text(p_text text) returns text
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return lower(btrim(regexp_replace(p_text, '[^[:alnum:]]+', ' ', 'g')));
end
$$;
comment on function private.memory_text is 'A memory without what does not change its meaning: case, marks, spaces.';

create or replace function private.keep_memories(
  p_client_id uuid, p_profile_id uuid, p_session_id uuid, p_call_id uuid, p_memories jsonb, p_from timestamptz, p_until timestamptz
) returns integer language plpgsql set search_path = '' as $$
declare
  v_memory record;
  v_same uuid;
  v_kept integer := 0;
begin
  if jsonb_typeof(p_memories) is distinct from 'array' or p_memories = '[]'
     or not (private.may_answer(p_profile_id, 'sms') and private.may_answer(p_profile_id, 'whatsapp')) then
    return 0;
  end if;
  -- Whoever asked in this very conversation to have something forgotten does not mean until it is over.
  if exists (select from public.mcp_tool_calls t
              where t.name = 'forget' and t.result ->> 'ok' = 'true'
                and case when p_call_id is not null then t.call_id = p_call_id
                    else t.session_id = p_session_id and t.created_at between p_from and p_until + interval '10 minutes' end) then
    return 0;
  end if;
  for v_memory in
    select m ->> 'kind' as kind, left(m ->> 'key', 60) as key, left(btrim(m ->> 'value'), 500) as value,
           round(least(greatest((m ->> 'confidence')::numeric, 0), 100) / 100, 2) as confidence
      from jsonb_array_elements(p_memories) m
     where jsonb_typeof(m) = 'object' and m ->> 'kind' in ('preference', 'fact') and m ->> 'key' ~ '^[a-z][a-z0-9_]{0,59}$'
       and nullif(btrim(m ->> 'value'), '') is not null and jsonb_typeof(m -> 'confidence') = 'number'
     order by m ->> 'key' limit 5
  loop
    -- What is only supposed is not kept.
    continue when v_memory.confidence < 0.5;
    select m.id into v_same from public.voice_memories m
     where m.client_id = p_client_id and m.profile_id = p_profile_id and private.memory_text(m.value) = private.memory_text(v_memory.value)
     order by (m.key = v_memory.key) desc, m.key limit 1;
    if found then
      update public.voice_memories m
         set said_at = greatest(m.said_at, p_until), confidence = greatest(m.confidence, v_memory.confidence),
             session_id = coalesce(p_session_id, m.session_id), call_id = coalesce(p_call_id, m.call_id),
             expires_at = case when m.expires_at > p_until then m.expires_at end
       where m.id = v_same;
    else
      -- The newer word counts, but not over what an agent was told in the same conversation, nor over an operator's.
      insert into public.voice_memories as m (client_id, profile_id, call_id, session_id, kind, key, value, source, confidence, said_at)
      values (p_client_id, p_profile_id, p_call_id, p_session_id, v_memory.kind, v_memory.key, v_memory.value, 'summary', v_memory.confidence, p_until)
      on conflict (client_id, profile_id, key) do update
        set kind = excluded.kind, value = excluded.value, call_id = excluded.call_id, session_id = excluded.session_id, source = excluded.source,
            confidence = excluded.confidence, said_at = excluded.said_at, expires_at = null
        where m.source <> 'operator' and m.said_at < case m.source when 'agent' then p_from else excluded.said_at end;
      continue when not found;
    end if;
    v_kept := v_kept + 1;
  end loop;
  -- So many that a model can be shown them; what nobody asked to have kept goes first.
  delete from public.voice_memories m where m.id in (
    select o.id from public.voice_memories o where o.client_id = p_client_id and o.profile_id = p_profile_id
     order by (o.source = 'summary'), o.said_at desc offset 50);
  return v_kept;
end
$$;
comment on function private.keep_memories is
  'Keeps what a model took out of a conversation from p_from until p_until, [{kind, key, value, confidence 0-100}]: said again, it is renewed; said otherwise, the newer counts; nothing of whoever said STOP, nothing below 50, 50 a person. How many.';

create or replace function private.note_conversation() returns trigger
language plpgsql set search_path = '' as $$
begin
  insert into public.memory_extractions as x (session_id, client_id, profile_id, due_at)
  values (new.session_id, new.client_id, new.profile_id, coalesce(new.finished_at, now()) + interval '30 minutes')
  on conflict (session_id) do update set due_at = excluded.due_at, tries = 0, given_up = null, swept_at = null;
  return null;
end
$$;
comment on function private.note_conversation is 'Trigger: a conversation is read half an hour after its last answer.';
drop trigger if exists conversation_turns_note on public.conversation_turns;
create trigger conversation_turns_note after update of status on public.conversation_turns for each row
  when (new.status = 'answered' and old.status <> 'answered' and new.kind = 'conversation') execute function private.note_conversation();

create or replace function public.begin_memories(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_row public.memory_extractions;
  v_transcript jsonb;
begin
  select * into v_row from public.memory_extractions where session_id = private.required(p, 'session_id')::uuid for no key update;
  -- Asked again under the same token, the answer was lost.
  if not found or v_row.due_at is null or v_row.due_at > v_now and v_row.lease_token is distinct from v_token then
    return '{"decision": "nothing"}';
  end if;
  if v_row.tries >= 3 and v_row.lease_token is distinct from v_token then
    update public.memory_extractions set due_at = null, lease_token = null, given_up = 'nobody_finished' where session_id = v_row.session_id;
    return '{"decision": "given_up"}';
  end if;
  -- What keywords and voice said is no part of it: calls have their own question.
  with said as (
    select m.seq, m.role, m.content, sum(length(m.content)) over (order by m.seq desc) as total
      from (select i.seq, i.role, i.content from public.conversation_messages i
             where i.session_id = v_row.session_id and i.seq > v_row.read_seq and i.kind = 'conversation' and i.content <> ''
             order by i.seq desc limit 100) m
  )
  select jsonb_agg(jsonb_build_object('role', s.role, 'text', s.content) order by s.seq) into v_transcript
    from said s where s.total <= 16000 and exists (select from said u where u.role = 'user');
  if v_transcript is null or not (private.may_answer(v_row.profile_id, 'sms') and private.may_answer(v_row.profile_id, 'whatsapp')) then
    update public.memory_extractions x
       set due_at = null, lease_token = null, read_seq = greatest(x.read_seq, (select max(m.seq) from public.conversation_messages m where m.session_id = x.session_id))
     where x.session_id = v_row.session_id;
    return '{"decision": "nothing"}';
  end if;
  update public.memory_extractions x
     set lease_token = v_token, lease_until = v_now + interval '10 minutes', due_at = v_now + interval '10 minutes',
         tries = x.tries + case when x.lease_token is distinct from v_token then 1 else 0 end
   where x.session_id = v_row.session_id;
  return jsonb_build_object('decision', 'go', 'profile_id', v_row.profile_id, 'brand', private.client_json(v_row.client_id) -> 'brand',
    'transcript', v_transcript, 'memory_keys', private.memory_keys(v_row.client_id, v_row.profile_id),
    'read_seq', (select max(m.seq) from public.conversation_messages m where m.session_id = v_row.session_id),
    'providers', private.provider_gates(array['openai'], v_token, v_now));
end
$$;
comment on function public.begin_memories is
  'RPC: claims the reading of a conversation for what is worth remembering: {session_id, lease_token} -> {decision: go | nothing | given_up, transcript, memory_keys, read_seq, brand, profile_id, providers}.';

create or replace function public.finish_memories(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_failed text := nullif(p ->> 'failed', '');
  v_row public.memory_extractions;
  v_kept integer := 0;
begin
  select * into v_row from public.memory_extractions where session_id = private.required(p, 'session_id')::uuid;
  if found then
    perform private.lock_person(v_row.client_id, v_row.profile_id);
    select * into v_row from public.memory_extractions where session_id = v_row.session_id for no key update;
  end if;
  -- Erased, recorded before, or taken over by another.
  if not found or v_row.lease_token is distinct from v_token then
    return '{"status": "gone"}';
  end if;
  if v_failed is null then
    select private.keep_memories(v_row.client_id, v_row.profile_id, v_row.session_id, null, p -> 'memories', min(m.occurred_at), max(m.occurred_at))
      into v_kept from public.conversation_messages m
     where m.session_id = v_row.session_id and m.direction = 'inbound' and m.seq > v_row.read_seq and m.seq <= (p ->> 'read_seq')::bigint;
  end if;
  update public.memory_extractions x
     set lease_token = null, lease_until = null, kept = x.kept + coalesce(v_kept, 0),
         read_seq = case when v_failed is null then greatest(x.read_seq, (p ->> 'read_seq')::bigint) else x.read_seq end,
         given_up = case when v_failed is not null and x.tries >= 3 then v_failed end,
         due_at = case
           -- Answered meanwhile: it is due for what came after.
           when x.due_at is distinct from x.lease_until then x.due_at
           when v_failed is not null and x.tries < 3 then v_now + interval '10 minutes' * (1 << x.tries) end
   where x.session_id = v_row.session_id
  returning * into v_row;
  perform private.note_provider_calls(p -> 'providers', v_token, v_now);
  perform private.release_probes(v_token);
  return jsonb_build_object('status', case when v_failed is null then 'done' when v_row.given_up is null then 'again' else 'given_up' end, 'kept', coalesce(v_kept, 0));
end
$$;
comment on function public.finish_memories is
  'RPC: keeps what was found, {session_id, lease_token, read_seq, memories, providers}, or says why nothing was, {failed: code}: tried again twice, then left with the reason.';

create or replace function public.finish_call_notification(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_id uuid := private.required(p, 'notification_id')::uuid;
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_correlation text := coalesce(p ->> 'correlation_id', '');
  v_outcome text := private.required(p, 'outcome');
  v_deliveries jsonb := coalesce(nullif(p -> 'deliveries', 'null'), '[]');
  v_message jsonb := nullif(p -> 'message', 'null');
  v_summary jsonb := nullif(p -> 'summary', 'null');
  v_claim public.call_notifications;
  v_stored jsonb;
  v_result jsonb;
begin
  if v_outcome not in ('done', 'released') then
    raise exception using errcode = 'PT400', message = format('outcome %s is not known', v_outcome);
  end if;
  select * into v_claim from public.call_notifications where id = v_id;
  if not found then
    raise exception using errcode = 'PT404', message = 'notification not found';
  end if;
  perform from public.omnichannel_sessions where id = v_claim.session_id for no key update;
  select * into strict v_claim from public.call_notifications where id = v_id for no key update;
  if v_token <> v_claim.lease_token and v_token is distinct from v_claim.previous_lease_token then
    raise exception using errcode = 'PT409', message = 'claim_not_held';
  end if;
  if v_token = v_claim.lease_token and v_claim.result is not null then
    return v_claim.result;
  end if;

  if v_outcome = 'released' and v_deliveries = '[]' then
    if v_token = v_claim.lease_token and v_claim.status = 'open' then
      v_result := jsonb_build_object('status', 'released', 'session', private.session_json(v_claim.session_id, false),
        'deliveries', '[]'::jsonb, 'fallbacks', '[]'::jsonb);
      update public.call_notifications
         set status = 'released', next_attempt_at = coalesce((p ->> 'next_attempt_at')::timestamptz, v_now), lease_until = v_now, result = v_result
       where id = v_id;
      perform private.note_provider_calls(p -> 'providers', v_token, v_now);
      perform private.release_probes(v_token);
      return v_result;
    end if;
    -- A former holder gives back what another has by now.
    return jsonb_build_object('status', v_claim.status, 'session', private.session_json(v_claim.session_id, false),
      'deliveries', '[]'::jsonb, 'fallbacks', '[]'::jsonb);
  end if;

  if v_summary is not null then
    insert into public.call_summaries (client_id, call_id, language, headline, points, next_step, intent, source, model, usage)
    values (v_claim.client_id, v_claim.call_id, v_summary ->> 'language', coalesce(v_summary ->> 'headline', ''),
            coalesce(nullif(v_summary -> 'points', 'null'), '[]'), v_summary ->> 'next_step', v_summary ->> 'intent',
            coalesce(v_summary ->> 'source', 'model'), v_summary ->> 'model', nullif(v_summary -> 'usage', 'null'))
    on conflict (call_id) do update
      set language = excluded.language, headline = excluded.headline, points = excluded.points, next_step = excluded.next_step,
          intent = excluded.intent, source = excluded.source, model = excluded.model, usage = excluded.usage
      where call_summaries.source = 'facts' and excluded.source = 'model';
    -- Of whoever was on the phone: a summary may go to somebody else.
    if v_summary ->> 'source' = 'model' then
      perform private.keep_memories(v_claim.client_id, v_claim.profile_id, v_claim.session_id, c.id, v_summary -> 'memories',
                coalesce(c.started_at, v_claim.created_at), coalesce(c.ended_at, v_now))
         from public.voice_calls c where c.id = v_claim.call_id and c.profile_id = v_claim.profile_id;
    end if;
  end if;

  if v_message is not null and v_claim.message_id is null then
    insert into public.conversation_messages
      (client_id, thread_id, session_id, profile_id, call_id, direction, role, channel, kind, content, language, renditions, routing,
       source, model, usage, agent_id, correlation_id, occurred_at, handled_at)
    select v_claim.client_id, t.id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, 'outbound', 'assistant',
           coalesce(v_deliveries -> 0 ->> 'channel', 'sms'), 'call_summary', coalesce(v_message ->> 'content', ''), v_message ->> 'language',
           nullif(v_message -> 'renditions', 'null'), nullif(v_message -> 'routing', 'null'), coalesce(v_summary ->> 'source', 'database'),
           v_summary ->> 'model', nullif(v_summary -> 'usage', 'null'),
           (select c.agent_id from public.voice_calls c where c.id = v_claim.call_id), v_claim.correlation_id, v_now, v_now
      from public.conversation_threads t where t.session_id = v_claim.session_id
    returning id into v_claim.message_id;
  end if;

  v_stored := private.store_deliveries(v_claim.client_id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, null, v_claim.message_id,
    v_deliveries, v_token, coalesce(nullif(v_correlation, ''), v_claim.correlation_id), 'call:' || v_claim.call_id,
    v_claim.possible_duplicate, v_claim.unknown_wait_seconds, v_now);
  perform private.touch_session(v_claim.session_id, 'follow_up',
    -- What waits for WhatsApp may never be sent.
    array(select distinct d ->> 'channel' from jsonb_array_elements(v_deliveries) d
           where d -> 'attempt' ->> 'outcome' <> 'suppressed' and d ->> 'waits_until' is null),
    v_now, v_summary ->> 'intent');
  v_result := jsonb_build_object('status', 'done',
    'session', private.session_json(v_claim.session_id, false), 'deliveries', v_stored -> 'deliveries', 'fallbacks', v_stored -> 'fallbacks');
  update public.call_notifications
     set status = 'done', finished_at = coalesce(finished_at, v_now), message_id = v_claim.message_id, next_attempt_at = null,
         result = case when v_token = lease_token then v_result else result end
   where id = v_id;
  perform private.note_provider_calls(p -> 'providers', v_token, v_now);
  perform private.after_attempts(v_stored -> 'noted', v_token, v_now);
  return v_result;
end
$$;

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
  v_answer := v_answer || jsonb_build_object('memory_keys', private.memory_keys(v_claim.client_id, v_claim.profile_id));
  return v_answer || jsonb_build_object('guards',
    private.guards_of_work(v_claim.client_id, v_claim.sms_delivery_id, v_claim.whatsapp_delivery_id, v_answer -> 'profile', 'call_summary', false, p_now)
    || jsonb_build_object('quiet_until', private.quiet_until(v_claim.client_id, v_claim.profile_id, p_now), 'urgent', v_claim.urgent));
end
$$;

create or replace function public.sweep(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_limit integer := least(coalesce((p ->> 'limit')::integer, 50), 1000);
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
  v_wait interval := make_interval(secs => coalesce((p ->> 'unknown_wait_seconds')::numeric, 120)::double precision);
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_grace interval := make_interval(secs => coalesce((p ->> 'call_grace_seconds')::numeric, 60)::double precision);
  v_jobs jsonb;
  v_calls jsonb;
  v_claims jsonb;
  v_turns jsonb;
  v_waiting jsonb;
  v_memories jsonb;
  v_closed integer;
  v_due integer;
  v_overdue integer;
  v_expired integer := 0;
  v_alerts integer := 0;
  v_sms jsonb;
  v_id uuid;
begin
  -- One sweep at a time. The other may be our own first try, whose answer did not come in time: it is not to look like a sweep
  -- that found nothing.
  if not pg_try_advisory_xact_lock(hashtextextended('ihuza:sweep', 20261121)) then
    return '{"busy": true}';
  end if;

  with idle as (
    select s.id from public.omnichannel_sessions s
     where s.status in ('active', 'follow_up') and s.last_activity_at < v_now - v_idle
       and not exists (select from public.conversation_turns t where t.session_id = s.id and t.status in ('open', 'released'))
     order by s.last_activity_at limit v_limit
       for no key update of s skip locked
  ), closed as (
    update public.omnichannel_sessions s set status = 'expired', ended_at = v_now from idle where s.id = idle.id returning 1
  )
  select count(*) into v_closed from closed;

  -- Ended calls that nobody began to tell about. Asked for again after ten minutes, should the request get lost.
  with owed as (
    select c.id from public.voice_calls c
     where c.ended_at < v_now - v_grace and c.ended_at > v_now - interval '24 hours' and c.notified_at is null and c.status = 'completed'
       and (c.notify_requested_at is null or c.notify_requested_at < v_now - interval '10 minutes')
     order by c.ended_at limit v_limit
       for no key update skip locked
  ), asked as (
    update public.voice_calls c set notify_requested_at = v_now from owed where c.id = owed.id
    returning c.id, case c.direction when 'outbound' then c.to_number else c.from_number end as phone
  )
  select jsonb_agg(jsonb_build_object('correlation_id', a.id::text, 'call_id', a.id, 'phone_number', case when private.is_e164(a.phone) then a.phone end))
    into v_calls from asked a;

  with owed as (
    select n.id from public.call_notifications n
     where ((n.status = 'open' and n.lease_until < v_now - v_wait) or (n.status = 'released' and n.next_attempt_at <= v_now))
       and (n.swept_at is null or n.swept_at < v_now - interval '5 minutes')
     limit v_limit
       for no key update skip locked
  ), asked as (
    update public.call_notifications n set swept_at = v_now from owed where n.id = owed.id returning n.correlation_id, n.call_id, n.phone_number
  )
  select jsonb_agg(jsonb_build_object('correlation_id', a.correlation_id, 'call_id', a.call_id, 'phone_number', a.phone_number)) into v_claims from asked a;

  with owed as (
    select t.id from public.conversation_turns t
     where ((t.status = 'open' and t.lease_until < v_now - v_wait) or (t.status = 'released' and t.next_attempt_at <= v_now))
       and (t.swept_at is null or t.swept_at < v_now - interval '5 minutes')
     limit v_limit
       for no key update skip locked
  ), asked as (
    update public.conversation_turns t set swept_at = v_now from owed where t.id = owed.id returning t.session_id, t.correlation_id
  )
  select jsonb_agg(jsonb_build_object('session_id', a.session_id, 'correlation_id', a.correlation_id)) into v_turns from asked a;

  -- Messages stored for a holder that is gone, those that wait longest first; asked for again after five minutes, so that none
  -- keeps others from being seen.
  with owed as (
    select m.id from public.conversation_messages m
     where m.direction = 'inbound' and m.handled_at is null and m.created_at < v_now - v_lease and m.kind = 'conversation' and m.turn_id is null
       and (m.swept_at is null or m.swept_at < v_now - interval '5 minutes')
       and not exists (select from public.conversation_turns t
                        where t.profile_id = m.profile_id and t.client_id = m.client_id and t.kind = 'conversation' and t.status in ('open', 'released'))
     order by m.created_at limit v_limit
       for no key update of m skip locked
  ), asked as (
    update public.conversation_messages m set swept_at = v_now from owed where m.id = owed.id returning m.session_id, m.correlation_id, m.seq
  ), first as (
    select distinct on (a.session_id) a.session_id, a.correlation_id, a.seq from asked a order by a.session_id, a.seq
  )
  select jsonb_agg(jsonb_build_object('session_id', f.session_id, 'correlation_id', f.correlation_id) order by f.seq) into v_waiting from first f;

  -- Conversations in which nothing was said for a while. Few at a time: each is a question to the model.
  with due as (
    select x.session_id from public.memory_extractions x
     where x.due_at <= v_now and (x.swept_at is null or x.swept_at < v_now - interval '10 minutes')
     order by x.due_at limit least(v_limit, 20)
       for no key update skip locked
  ), asked as (
    update public.memory_extractions x set swept_at = v_now from due where x.session_id = due.session_id returning x.session_id
  )
  select jsonb_agg(jsonb_build_object('session_id', a.session_id, 'correlation_id', 'memories-' || a.session_id)) into v_memories from asked a;

  with due as (
    select j.id from public.jobs j
     where j.status = 'pending' and (j.lease_until is null or j.lease_until < v_now)
     order by j.created_at limit v_limit
       for no key update skip locked
  ), leased as (
    update public.jobs j set lease_until = v_now + v_lease, leases = j.leases + 1 from due where j.id = due.id
    returning j.id, j.queue, j.payload, j.created_at
  )
  select jsonb_agg(jsonb_build_object('id', l.id, 'queue', l.queue, 'payload', l.payload) order by l.created_at) into v_jobs from leased l;

  -- Reports that still have no delivery although there is one by now: a safety net below private.lock_refs.
  for v_id in
    select distinct l.id from public.message_status_events e
      join public.message_delivery_log l on l.id = private.uuid_or_null(e.delivery_ref)
     where e.delivery_id is null and e.created_at between v_now - interval '1 hour' and v_now
     order by 1 limit v_limit
  loop
    perform private.join_orphans(v_id);
    perform private.refold_delivery(v_id);
  end loop;

  for v_id in
    select l.id from public.message_delivery_log l
     where l.next_attempt_at <= v_now and l.deadline_at <= v_now and l.lease_token is null
     order by l.next_attempt_at limit v_limit
       for no key update skip locked
  loop
    perform private.claim_delivery(v_id, gen_random_uuid(), v_lease, v_wait, 'open', v_now, v_now);
    v_expired := v_expired + (select count(*)::integer from public.message_delivery_log l where l.id = v_id and l.status = 'expired');
  end loop;
  if v_expired > 0 then
    perform private.raise_alert('deliveries_expired', 'warning', 'deliveries_expired',
      'Messages reached their deadline without being sent.', jsonb_build_object('in_this_sweep', v_expired));
    v_alerts := v_alerts + 1;
  end if;

  select count(*), count(*) filter (where d.next_attempt_at < v_now - interval '15 minutes') into v_due, v_overdue
    from (select l.next_attempt_at from public.message_delivery_log l where l.next_attempt_at <= v_now order by l.next_attempt_at limit 1000) d;
  if v_overdue > 0 then
    perform private.raise_alert('deliveries_overdue', 'critical', 'deliveries_overdue',
      'Messages that are due have waited for more than 15 minutes: is delivery-retry running?', jsonb_build_object('overdue', v_overdue));
    v_alerts := v_alerts + 1;
  end if;

  perform private.prune_orphans(v_now - interval '30 days', 1000);
  delete from public.provider_outcomes where created_at < v_now - interval '1 hour';
  delete from public.rate_limits where window_start < v_now - interval '2 days';
  delete from public.jobs where status = 'done' and completed_at < v_now - interval '7 days';
  v_sms := private.keep_sms_figures(v_now);

  return jsonb_build_object(
    'jobs', coalesce(v_jobs, '[]'),
    'notify', coalesce(v_calls, '[]') || coalesce(v_claims, '[]'),
    'turns', coalesce(v_turns, '[]') || coalesce(v_waiting, '[]'),
    'memories', coalesce(v_memories, '[]'),
    'due_deliveries', v_due, 'expired_deliveries', v_expired, 'closed_sessions', v_closed, 'alerts', v_alerts, 'sms_figures', v_sms);
end
$$;

revoke execute on function private.memory_keys(uuid, uuid), private.memory_text(text),
  private.keep_memories(uuid, uuid, uuid, uuid, jsonb, timestamptz, timestamptz), private.note_conversation(), public.begin_memories(jsonb),
  public.finish_memories(jsonb) from public, anon, authenticated;
grant execute on function private.memory_keys(uuid, uuid), private.memory_text(text),
  private.keep_memories(uuid, uuid, uuid, uuid, jsonb, timestamptz, timestamptz), private.note_conversation(), public.begin_memories(jsonb),
  public.finish_memories(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121017000'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
