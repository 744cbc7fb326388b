-- 20261121017100_asked_to_be_forgotten.sql
-- What people may ask about themselves, by keyword: FORGET ME, confirmed by ERASE ALL within a day, erases them; MY DATA tells how much
-- there is and asks the operator for the copy. Whoever had said STOP and is erased stays unwritten to: a hash of their number is kept.
-- Safe to run again. Locks conversation_turns (one check that looks at no row) and profiles (triggers) for a moment. Undo: drop the
-- triggers, the new functions and tables; apply turn_answer and begin_sms_turn of 20261121016000, erase_person of 20261121013140 and sweep
-- of 20261121017000 again.
do $$
begin
  if not exists (select from pg_catalog.pg_constraint k where k.conrelid = 'public.conversation_turns'::regclass
                  and k.conname = 'conversation_turns_keyword_is_known' and pg_catalog.pg_get_constraintdef(k.oid) like '%my_data%') then
    alter table public.conversation_turns drop constraint if exists conversation_turns_keyword_is_known;
    alter table public.conversation_turns add constraint conversation_turns_keyword_is_known
      check (keyword in ('stop', 'start', 'help', 'sms_only', 'whatsapp_only', 'both', 'forget_me', 'forget_confirm', 'my_data')) not valid;
  end if;
end
$$;

create table if not exists public.privacy_requests (
  id uuid constraint privacy_requests_pkey primary key default gen_random_uuid(),
  number bigint generated always as identity constraint privacy_requests_number_key unique,
  client_id uuid not null constraint privacy_requests_client_id_fkey references public.clients (id),
  profile_id uuid not null constraint privacy_requests_profile_id_fkey references public.profiles (id) on delete cascade,
  kind text not null,
  state text not null default 'asked',
  channel text not null,
  asked_at timestamptz not null default now(),
  confirmed_at timestamptz,
  tried_at timestamptz,
  done_at timestamptz,
  done_by text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint privacy_requests_kind_is_known check (kind in ('erase', 'export')),
  constraint privacy_requests_state_is_known check (state in ('asked', 'confirmed', 'done')),
  constraint privacy_requests_states_say_when check ((state <> 'confirmed' or confirmed_at is not null) and (state = 'done') = (done_at is not null))
);
create table if not exists public.kept_opt_outs (
  number_hash text not null,
  channel text not null,
  created_at timestamptz not null default now(),
  constraint kept_opt_outs_pkey primary key (number_hash, channel),
  constraint kept_opt_outs_channel_is_known check (channel in ('sms', 'whatsapp')),
  constraint kept_opt_outs_number_hash_is_sha256 check (number_hash ~ '^[0-9a-f]{64}$')
);
do $$
begin
  perform private.require_columns('public.privacy_requests', '{
    "id": "uuid", "number": "bigint", "client_id": "uuid", "profile_id": "uuid", "kind": "text", "state": "text", "channel": "text",
    "asked_at": "timestamp with time zone", "confirmed_at": "timestamp with time zone", "tried_at": "timestamp with time zone",
    "done_at": "timestamp with time zone", "done_by": "text", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
  perform private.require_columns('public.kept_opt_outs', '{"number_hash": "text", "channel": "text", "created_at": "timestamp with time zone"}');
end
$$;
create unique index if not exists privacy_requests_one_open on public.privacy_requests (client_id, profile_id, kind) where state <> 'done';
create index if not exists idx_privacy_requests_client on public.privacy_requests (client_id);
create index if not exists idx_privacy_requests_profile on public.privacy_requests (profile_id);
create index if not exists idx_privacy_requests_confirmed on public.privacy_requests (confirmed_at) where state = 'confirmed';
comment on table public.privacy_requests is 'What people asked about themselves. One that was done for good is gone with its person: `erasures` says so.';
comment on column public.privacy_requests.number is 'In the order in which they came; names the request in its alert.';
comment on column public.privacy_requests.kind is 'erase: FORGET ME; export: MY DATA.';
comment on column public.privacy_requests.state is 'asked; confirmed (erase: by ERASE ALL within 24 hours); done.';
comment on column public.privacy_requests.channel is 'Where it was asked: sms or whatsapp.';
comment on column public.privacy_requests.asked_at is 'Last; asked again, the 24 hours begin again.';
comment on column public.privacy_requests.confirmed_at is 'From then on they are erased as soon as nobody works for them.';
comment on column public.privacy_requests.tried_at is 'When erasing them was last tried.';
comment on column public.privacy_requests.done_by is 'The operator who handed the copy over.';
comment on table public.kept_opt_outs is 'Of people who were erased: a hash of the number and the channel on which they had said STOP, so that nobody writes to them as to a stranger. START there removes it.';
comment on column public.kept_opt_outs.number_hash is 'SHA-256 of the number in E.164. Numbers can be tried out: it is pseudonymous, not anonymous.';
comment on column public.kept_opt_outs.channel is 'sms or whatsapp.';
drop trigger if exists privacy_requests_touch on public.privacy_requests;
create trigger privacy_requests_touch before update on public.privacy_requests for each row execute function private.touch_updated_at();
alter table public.privacy_requests enable row level security;
alter table public.kept_opt_outs enable row level security;
drop policy if exists privacy_requests_select on public.privacy_requests;
create policy privacy_requests_select on public.privacy_requests for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
drop policy if exists kept_opt_outs_select on public.kept_opt_outs;
create policy kept_opt_outs_select on public.kept_opt_outs for select to authenticated using (false);
revoke all on public.privacy_requests, public.kept_opt_outs from public, anon, authenticated;
grant select on public.privacy_requests, public.kept_opt_outs to authenticated;
grant select, insert, update, delete on public.privacy_requests, public.kept_opt_outs to service_role;
revoke all on sequence public.privacy_requests_number_seq from public, anon, authenticated;
grant usage, select on sequence public.privacy_requests_number_seq to service_role;

create or replace function private.number_hash(p_number text) returns text
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return encode(sha256(convert_to('ihuza-opt-out:+' || ltrim(p_number, '+'), 'UTF8')), 'hex');
end
$$;
comment on function private.number_hash is 'What is kept of a number whose person was erased.';

create or replace function private.recall_opt_out() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_channels text[];
begin
  if tg_op = 'INSERT' then
    v_channels := array(select k.channel from public.kept_opt_outs k where k.number_hash = private.number_hash(new.phone_number));
    if 'sms' = any (v_channels) then
      new.allows_sms := false;
      new.allows_sms_source := 'keyword';
      new.allows_sms_at := coalesce(new.allows_sms_at, now());
    end if;
    if 'whatsapp' = any (v_channels) then
      new.notification_preferences := new.notification_preferences
        || jsonb_build_object('allows_whatsapp', false, 'allows_whatsapp_source', 'keyword', 'allows_whatsapp_at', now());
    end if;
    return new;
  end if;
  -- They are written to again because they asked for it: nothing more is to be kept.
  delete from public.kept_opt_outs k
   where k.number_hash = private.number_hash(new.phone_number)
     and (k.channel = 'sms' and new.allows_sms and not old.allows_sms
       or k.channel = 'whatsapp' and new.notification_preferences ->> 'allows_whatsapp' = 'true' and old.notification_preferences ->> 'allows_whatsapp' = 'false');
  return new;
end
$$;
comment on function private.recall_opt_out is 'Trigger: whoever said STOP and was erased is no stranger to write to when they come back; START ends that.';
drop trigger if exists profiles_recall_opt_out on public.profiles;
create trigger profiles_recall_opt_out before insert on public.profiles for each row when (new.phone_number is not null)
  execute function private.recall_opt_out();
drop trigger if exists profiles_forget_opt_out on public.profiles;
create trigger profiles_forget_opt_out after update of allows_sms, notification_preferences on public.profiles for each row
  when (new.phone_number is not null and (new.allows_sms and not old.allows_sms
    or new.notification_preferences ->> 'allows_whatsapp' = 'true' and old.notification_preferences ->> 'allows_whatsapp' = 'false'))
  execute function private.recall_opt_out();

create or replace function private.keep_opt_outs(p_profile_id uuid) returns void
language plpgsql set search_path = '' as $$
begin
  insert into public.kept_opt_outs (number_hash, channel)
  select distinct private.number_hash(n.number), c.channel
    from public.profiles p
    cross join lateral (values ('sms', not p.allows_sms and p.allows_sms_source is distinct from 'provider'),
      ('whatsapp', p.notification_preferences ->> 'allows_whatsapp' = 'false' and p.notification_preferences ->> 'allows_whatsapp_source' is distinct from 'provider')) c (channel, said)
    cross join lateral (
      select p.phone_number union select i.value from public.profile_identities i where i.profile_id = p.id and i.kind in ('phone', 'whatsapp_phone')) n (number)
   where p.id = p_profile_id and c.said and n.number is not null
  on conflict do nothing;
end
$$;
comment on function private.keep_opt_outs is 'Part of private.erase_person: what a person said STOP to, by a hash of their numbers. What a provider told is forgotten.';

create or replace function private.ask_about_oneself(p_client_id uuid, p_profile_id uuid, p_keyword text, p_channel text, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
  v_kind text := case p_keyword when 'my_data' then 'export' else 'erase' end;
  v_number bigint;
begin
  if p_keyword = 'forget_confirm' then
    update public.privacy_requests r set state = 'confirmed', confirmed_at = p_now
     where r.client_id = p_client_id and r.profile_id = p_profile_id and r.kind = 'erase' and r.state = 'asked';
    return;
  end if;
  insert into public.privacy_requests as r (client_id, profile_id, kind, channel, asked_at) values (p_client_id, p_profile_id, v_kind, p_channel, p_now)
  on conflict (client_id, profile_id, kind) where state <> 'done' do update set asked_at = excluded.asked_at, channel = excluded.channel
  returning r.number into v_number;
  if v_kind = 'export' then
    perform private.raise_alert('export_asked', 'warning', 'privacy:' || v_number,
      'Somebody asked for a copy of what we hold on them: hand it over within 30 days.', jsonb_build_object('number', v_number), p_client_id);
  end if;
end
$$;
comment on function private.ask_about_oneself is 'What FORGET ME, ERASE ALL and MY DATA leave behind: a row, and for a copy an alert. Neither says anything of the person.';

create or replace function private.may_confirm(p_client_id uuid, p_profile_id uuid, p_now timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
begin
  return exists (
    select from public.privacy_requests r
     where r.client_id = p_client_id and r.profile_id = p_profile_id and r.kind = 'erase'
       and (r.state = 'confirmed' or r.state = 'asked' and r.asked_at > p_now - interval '24 hours'));
end
$$;
comment on function private.may_confirm is 'Whether ERASE ALL means anything now: FORGET ME was said within 24 hours.';

create or replace function private.held_of(p_client_id uuid, p_profile_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return jsonb_build_object(
    'messages', (select count(*) from public.conversation_messages m where m.client_id = p_client_id and m.profile_id = p_profile_id),
    'calls', (select count(*) from public.voice_calls c where c.client_id = p_client_id and c.profile_id = p_profile_id),
    'notes', (select count(*) from public.voice_memories m where m.client_id = p_client_id and m.profile_id = p_profile_id)
      + (select count(*) from public.service_requests s where s.client_id = p_client_id and s.profile_id = p_profile_id)
      + (select count(*) from public.transport_bookings b where b.client_id = p_client_id and b.profile_id = p_profile_id));
end
$$;
comment on function private.held_of is 'How much there is of a person with a client, for the answer to MY DATA; notes: memories, requests, bookings.';

create or replace function public.erase_asked(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_request public.privacy_requests;
begin
  update public.privacy_requests r set tried_at = v_now
   where r.id = private.required(p, 'id')::uuid and r.kind = 'erase' and r.state = 'confirmed'
  returning * into v_request;
  if not found then
    return '{"decision": "nothing"}';
  end if;
  -- The last message is to be out first, and its report in, if that comes at all: both need the number.
  if v_request.confirmed_at > v_now - interval '15 minutes' and exists (
       select from public.message_delivery_log l
        where l.turn_id in (select t.id from public.conversation_turns t where t.profile_id = v_request.profile_id and t.keyword = 'forget_confirm')
          and l.status not in ('delivered', 'read', 'failed', 'undeliverable', 'expired', 'suppressed')) then
    return '{"decision": "later"}';
  end if;
  begin
    perform private.erase_person(v_request.profile_id, 'asked_by_person');
  exception when sqlstate 'PT409' then
    return '{"decision": "later"}';
  end;
  update public.alerts a set resolved_at = v_now where a.dedupe_key = 'privacy:' || v_request.number and a.resolved_at is null;
  return '{"decision": "erased"}';
end
$$;
comment on function public.erase_asked is
  'RPC: erases whoever asked for it and confirmed it, {id} -> {decision: erased | later (somebody works for them, or the last message is not out) | nothing}.';

create or replace function public.finish_privacy_request(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_request public.privacy_requests;
begin
  update public.privacy_requests r set state = 'done', done_at = private.now_of(p), done_by = left(private.required(p, 'operator'), 200)
   where r.number = private.required(p, 'number')::bigint and r.kind = 'export' and r.state = 'asked'
  returning * into v_request;
  if not found then
    raise exception using errcode = 'PT404', message = 'there is no open request for a copy of that number';
  end if;
  update public.alerts a set resolved_at = private.now_of(p) where a.dedupe_key = 'privacy:' || v_request.number and a.resolved_at is null;
  return to_jsonb(v_request);
end
$$;
comment on function public.finish_privacy_request is 'RPC: an operator has handed a copy over: {number, operator}.';

create or replace function public.export_person(p_profile_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_sessions uuid[] := array(select s.id from public.omnichannel_sessions s where s.profile_id = p_profile_id);
  v_calls uuid[] := array(select c.id from public.voice_calls c where c.profile_id = p_profile_id);
  v_table record;
  v_rows jsonb;
  v_all jsonb := '{}';
begin
  if not exists (select from public.profiles where id = p_profile_id) then
    raise exception using errcode = 'PT404', message = 'person not found';
  end if;
  -- Every table that says whose its rows are, so that one that comes later is not left out.
  for v_table in
    select c.table_name as name, bool_or(c.column_name = 'profile_id') as of_profile, bool_or(c.column_name = 'session_id') as of_session
      from information_schema.columns c join information_schema.tables t using (table_schema, table_name)
     where c.table_schema = 'public' and t.table_type = 'BASE TABLE' and c.column_name in ('profile_id', 'session_id', 'call_id')
       and c.table_name not in ('erasures', 'agent_tool_tokens')
     group by 1 order by 1
  loop
    execute format(
      'select jsonb_agg(to_jsonb(x) - $4) from public.%I x where %s', v_table.name,
      case when v_table.of_profile then 'x.profile_id = $1' when v_table.of_session then 'x.session_id = any ($2)' else 'x.call_id = any ($3)' end)
      into v_rows using p_profile_id, v_sessions, v_calls,
        -- How we work and what we pay, which is not of them.
        array['lease_token', 'lease_until', 'previous_lease_token', 'idempotency_key', 'result_token', 'cost', 'revenue', 'margin', 'usage', 'swept_at'];
    if v_rows is not null then
      v_all := v_all || jsonb_build_object(v_table.name, v_rows);
    end if;
  end loop;
  return v_all || jsonb_build_object('profiles', (select jsonb_agg(to_jsonb(p)) from public.profiles p where p.id = p_profile_id), 'exported_at', now());
end
$$;
comment on function public.export_person is
  'RPC: all that is held of a person, {table: [rows]}, for them to have: whoever calls it hands it to nobody else. Without what we pay and how we work.';

create or replace function private.erase_person(p_profile_id uuid, p_reason text) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_now timestamptz := clock_timestamp();
  v_numbers text[];
  v_sessions uuid[];
  v_calls uuid[];
  v_turns uuid[];
  v_notes uuid[];
  v_deliveries uuid[];
  -- A payload with one of these in it is theirs: numbers, ids that we made, and, in quotes, ids that others chose.
  v_digits text[];
  v_words text[];
  v_names text[];
  v_client uuid;
  v_count integer;
  v_list text;
  v_counts jsonb := '{}';
begin
  if p_reason is null or p_reason !~ '^[a-z][a-z_]{2,59}$' then
    raise exception using errcode = 'PT400', message = 'reason must be a code, such as asked_by_person';
  end if;
  if not exists (select from public.profiles where id = p_profile_id) then
    raise exception using errcode = 'PT404', message = 'person not found';
  end if;
  for v_client in select distinct s.client_id from public.omnichannel_sessions s where s.profile_id = p_profile_id order by 1 loop
    perform private.lock_person(v_client, p_profile_id);
  end loop;
  perform from public.omnichannel_sessions where profile_id = p_profile_id order by id for update;

  select array_agg(distinct n) into v_numbers
    from (
      select p.phone_number as n from public.profiles p where p.id = p_profile_id
      union all
      select split_part(p.whatsapp_jid, '@', 1) from public.profiles p where p.id = p_profile_id
      union all
      select i.value from public.profile_identities i where i.profile_id = p_profile_id
      union all
      select c.phone_number from public.call_notifications c where c.profile_id = p_profile_id
      union all
      select case l.direction when 'inbound' then l.sender else l.recipient end from public.message_delivery_log l where l.profile_id = p_profile_id
    ) known where length(n) >= 7;
  -- +250..., and the same digits as carriers and WhatsApp write them.
  v_numbers := array(select distinct x from unnest(v_numbers) n, lateral (values (n), (ltrim(n, '+')), ('+' || ltrim(n, '+'))) v (x));
  v_sessions := array(select s.id from public.omnichannel_sessions s where s.profile_id = p_profile_id);
  v_calls := array(
    select c.id from public.voice_calls c
     where c.profile_id = p_profile_id or private.e164_of(c.from_number) = any (v_numbers) or private.e164_of(c.to_number) = any (v_numbers));
  v_turns := array(select t.id from public.conversation_turns t where t.profile_id = p_profile_id);
  v_notes := array(select n.id from public.call_notifications n where n.profile_id = p_profile_id or n.call_id = any (v_calls));
  v_deliveries := array(
    select l.id from public.message_delivery_log l
     where l.profile_id = p_profile_id or l.session_id = any (v_sessions) or l.call_id = any (v_calls)
        or l.recipient = any (v_numbers) or l.sender = any (v_numbers)
     order by l.id);
  perform from public.message_delivery_log where id = any (v_deliveries) order by id for no key update;
  -- What is on its way would be recorded after we have forgotten it.
  if exists (select from public.conversation_turns t where t.id = any (v_turns) and t.status = 'open' and t.lease_until > v_now)
     or exists (select from public.call_notifications n where n.id = any (v_notes) and n.status = 'open' and n.lease_until > v_now)
     or exists (select from public.message_delivery_log l where l.id = any (v_deliveries) and l.lease_until > v_now)
     -- A call that runs still tells; one whose end nobody told of is over after three hours.
     or exists (select from public.voice_calls c
                 where c.id = any (v_calls) and c.ended_at is null and c.correlation_id is not null and c.started_at > v_now - interval '3 hours') then
    raise exception using errcode = 'PT409', message = 'person_is_being_answered', hint = 'Try again in two minutes.';
  end if;
  v_digits := array(select distinct ltrim(n, '+') from unnest(v_numbers) n where n ~ '^[+]?[0-9]+$');
  v_names := array(
    select c.provider_call_id from public.voice_calls c where c.id = any (v_calls) and c.provider_call_id is not null
    union
    select c.mtn_call_sid from public.voice_calls c where c.id = any (v_calls) and c.mtn_call_sid is not null
    union
    select l.correlation_id from public.message_delivery_log l where l.id = any (v_deliveries) and l.correlation_id is not null
    union
    select r.correlation_id from public.notification_requests r where r.call_id = any (v_calls)
    union
    select c.correlation_id from public.voice_calls c where c.id = any (v_calls) and c.correlation_id is not null);
  v_words := array(select n from unnest(v_numbers) n where n !~ '^[+]?[0-9]+$')
    || array(select to_jsonb(n)::text from unnest(v_names) n)
    || array(select i::text from unnest(v_sessions || v_calls || v_turns || v_notes || v_deliveries || p_profile_id) i)
    || array(select t.sms_delivery_id::text from public.conversation_turns t where t.id = any (v_turns))
    || array(select t.whatsapp_delivery_id::text from public.conversation_turns t where t.id = any (v_turns))
    || array(select n.sms_delivery_id::text from public.call_notifications n where n.id = any (v_notes))
    || array(select n.whatsapp_delivery_id::text from public.call_notifications n where n.id = any (v_notes))
    || array(select s.id::text from public.call_summaries s where s.call_id = any (v_calls));

  -- Envelopes. Reports of several people travel together, and so do calls: only this person's are taken out.
  foreach v_list in array array['events', 'calls'] loop
    update public.jobs j
       set payload = jsonb_set(j.payload, array['body', v_list], (
             select coalesce(jsonb_agg(e), '[]') from jsonb_array_elements(j.payload #> array['body', v_list]) e where not private.mentions(e::text, v_words, v_digits)))
     where jsonb_typeof(j.payload #> array['body', v_list]) = 'array' and private.mentions(j.payload::text, v_words, v_digits);
    update public.dead_letters d
       set payload = jsonb_set(d.payload, array['body', v_list], (
             select coalesce(jsonb_agg(e), '[]') from jsonb_array_elements(d.payload #> array['body', v_list]) e where not private.mentions(e::text, v_words, v_digits)))
     where jsonb_typeof(d.payload #> array['body', v_list]) = 'array' and private.mentions(d.payload::text, v_words, v_digits);
  end loop;
  delete from public.jobs j
   where j.correlation_id = any (v_names) or private.mentions(concat_ws(' ', j.payload::text, j.correlation_id), v_words, v_digits)
      or '[]' in (j.payload #> '{body,events}', j.payload #> '{body,calls}');
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('jobs', v_count);
  delete from public.dead_letters d
   where d.correlation_id = any (v_names)
      or private.mentions(concat_ws(' ', d.payload::text, d.message_id, d.correlation_id), v_words, v_digits)
      or '[]' in (d.payload #> '{body,events}', d.payload #> '{body,calls}');
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('dead_letters', v_count);
  update public.alerts a set details = '{}' where private.mentions(a.details::text, v_words, v_digits);
  delete from public.rate_limits r where private.mentions(r.bucket, v_words, v_digits);

  -- What was said in calls. The calls themselves stay as figures.
  delete from public.transcripts t where t.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('transcripts', v_count);
  delete from public.voice_events e where e.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('voice_events', v_count);
  delete from public.call_consents s where s.call_id = any (v_calls) or s.profile_id = p_profile_id;
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('call_consents', v_count);
  delete from public.wa_threads w where w.profile_id = p_profile_id or w.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('wa_threads', v_count);
  delete from public.voice_memories m where m.profile_id = p_profile_id or m.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('voice_memories', v_count);
  update public.openai_sessions o set provider_session_id = null, locale = null where o.call_id = any (v_calls);
  delete from public.call_summaries s where s.call_id = any (v_calls);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('call_summaries', v_count);
  delete from public.mcp_tool_calls m where m.call_id = any (v_calls) or m.session_id = any (v_sessions) or m.turn_id = any (v_turns);
  get diagnostics v_count = row_count;
  v_counts := v_counts || jsonb_build_object('mcp_tool_calls', v_count);
  delete from public.notification_requests r
   where r.call_id = any (v_calls) or r.call_ref = any (v_names) or r.correlation_id = any (v_names)
      or private.mentions(concat_ws(' ', r.call_ref, r.correlation_id), v_words, v_digits);
  delete from public.call_notification_resends r where r.call_id = any (v_calls);
  delete from public.call_notifications n where n.id = any (v_notes);
  update public.voice_calls c
     set profile_id = null, from_number = null, to_number = null, provider_call_id = null, mtn_call_sid = null, metadata = '{}', end_reason = null,
         locale = null, correlation_id = null, session_id = null, erased_at = v_now, notified_at = coalesce(c.notified_at, v_now)
   where c.id = any (v_calls);
  v_counts := v_counts || jsonb_build_object('voice_calls', cardinality(v_calls));

  -- Messages: a WhatsApp id spells the number, so ids, events and attempts go with the text.
  delete from public.message_status_events e where e.delivery_id = any (v_deliveries) or e.delivery_ref = any (v_words);
  delete from public.message_delivery_attempts a where a.delivery_id = any (v_deliveries);
  update public.message_delivery_log l
     set recipient = null, sender = null, content = null, payload = null, provider_message_id = null, provider_request_id = null,
         correlation_id = null, idempotency_key = null, lease_token = null, lease_until = null, next_attempt_at = null, profile_id = null,
         status = case when l.status in ('queued', 'sending') then 'suppressed' else l.status end,
         suppress_reason = case when l.status in ('queued', 'sending') then 'erased' else l.suppress_reason end,
         erased_at = v_now
   where l.id = any (v_deliveries);
  v_counts := v_counts || jsonb_build_object('message_delivery_log', cardinality(v_deliveries));

  -- What clients count. Our own rows have lost their texts and numbers with the deliveries and calls; those of other writers have not.
  v_counts := v_counts || private.erase_sms_and_calls(p_profile_id, v_numbers, v_calls, v_deliveries);

  -- Whoever said STOP is not to be written to as a stranger.
  perform private.keep_opt_outs(p_profile_id);
  select count(*) into v_count from public.conversation_messages m where m.profile_id = p_profile_id;
  -- Identities, sessions, threads, turns and messages go with it.
  delete from public.profiles where id = p_profile_id;
  v_counts := v_counts || jsonb_build_object('conversation_messages', v_count, 'omnichannel_sessions', cardinality(v_sessions), 'profiles', 1);
  insert into public.erasures (profile_id, reason, counts, created_at) values (p_profile_id, p_reason, v_counts, v_now);
  return v_counts;
end
$$;

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
    'held', case v_turn.keyword when 'my_data' then private.held_of(v_turn.client_id, v_turn.profile_id) end,
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
    -- ERASE ALL means nothing by itself; and whoever proves nothing may have chosen the sender: an agent answers them.
    if v_keyword = 'forget_confirm' and not private.may_confirm(v_client_id, v_profile_id, v_now)
       or v_keyword in ('forget_me', 'forget_confirm', 'my_data') and coalesce((p ->> 'unsigned')::boolean, false) then
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
  if v_keyword in ('forget_me', 'forget_confirm', 'my_data') then
    perform private.ask_about_oneself(v_client_id, v_profile_id, v_keyword, v_channel, v_now);
  elsif v_keyword in ('sms_only', 'whatsapp_only', 'both') then
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
  v_erasures jsonb;
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

  -- Who asked to be forgotten and confirmed it: each is erased in a transaction of its own, for its locks.
  select jsonb_agg(e.id order by e.confirmed_at) into v_erasures
    from (select r.id, r.confirmed_at from public.privacy_requests r
           where r.state = 'confirmed' and (r.tried_at is null or r.tried_at < v_now - interval '2 minutes') order by r.confirmed_at limit 5) e;
  if exists (select from public.privacy_requests r where r.state = 'confirmed' and r.confirmed_at < v_now - interval '24 hours') then
    perform private.raise_alert('erasure_overdue', 'critical', 'erasure_overdue',
      'Somebody who asked to be forgotten a day ago is not: privacy_requests says who, erase_person why.', '{}');
    v_alerts := v_alerts + 1;
  end if;

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
    'erasures', coalesce(v_erasures, '[]'),
    'due_deliveries', v_due, 'expired_deliveries', v_expired, 'closed_sessions', v_closed, 'alerts', v_alerts, 'sms_figures', v_sms);
end
$$;

revoke execute on function private.number_hash(text), private.recall_opt_out(), private.keep_opt_outs(uuid),
  private.ask_about_oneself(uuid, uuid, text, text, timestamptz), private.may_confirm(uuid, uuid, timestamptz), private.held_of(uuid, uuid),
  public.erase_asked(jsonb), public.finish_privacy_request(jsonb), public.export_person(uuid) from public, anon, authenticated;
grant execute on function private.number_hash(text), private.recall_opt_out(), private.keep_opt_outs(uuid),
  private.ask_about_oneself(uuid, uuid, text, text, timestamptz), private.may_confirm(uuid, uuid, timestamptz), private.held_of(uuid, uuid),
  public.erase_asked(jsonb), public.finish_privacy_request(jsonb), public.export_person(uuid) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121017100'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
