-- 20261121014020_handoffs.sql
-- A conversation that a person of the team is to take: a queue that operators take from, one at a time.
-- Safe to run again. Locks voice_calls and voice_events for a moment (a trigger each). Undo: drop the triggers, the functions and the table.
create table if not exists public.handoffs (
  id uuid constraint handoffs_pkey primary key default gen_random_uuid(),
  number bigint generated always as identity constraint handoffs_number_key unique,
  client_id uuid not null constraint handoffs_client_id_fkey references public.clients (id),
  profile_id uuid constraint handoffs_profile_id_fkey references public.profiles (id) on delete cascade,
  session_id uuid constraint handoffs_session_id_fkey references public.omnichannel_sessions (id) on delete set null,
  call_id uuid constraint handoffs_call_id_fkey references public.voice_calls (id) on delete cascade,
  state text not null default 'waiting',
  channel text,
  department text,
  urgent boolean not null default false,
  reason text not null,
  transfer_to text,
  transfer_outcome text,
  taken_by text,
  taken_at timestamptz,
  closed_by text,
  closed_at timestamptz,
  outcome text,
  correlation_id text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint handoffs_state_is_known check (state in ('waiting', 'taken', 'closed')),
  constraint handoffs_taken_says_by_whom check ((taken_by is null) = (taken_at is null) and (state <> 'taken' or taken_by is not null)),
  constraint handoffs_closed_says_when check ((state = 'closed') = (closed_at is not null)),
  constraint handoffs_are_of_somebody check (profile_id is not null or call_id is not null),
  constraint handoffs_reason_is_short check (length(btrim(reason)) between 1 and 500),
  constraint handoffs_transfer_outcome_is_known check (transfer_outcome in ('confirmed', 'failed', 'unknown'))
);
do $$
begin
  perform private.require_columns('public.handoffs', '{
    "id": "uuid", "number": "bigint", "client_id": "uuid", "profile_id": "uuid", "session_id": "uuid", "call_id": "uuid", "state": "text",
    "channel": "text", "department": "text", "urgent": "boolean", "reason": "text", "transfer_to": "text", "transfer_outcome": "text",
    "taken_by": "text", "taken_at": "timestamp with time zone", "closed_by": "text", "closed_at": "timestamp with time zone",
    "outcome": "text", "correlation_id": "text", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_handoffs_waiting on public.handoffs (client_id, urgent desc, number) where state = 'waiting';
create unique index if not exists handoffs_one_open_per_person on public.handoffs (client_id, profile_id) where state <> 'closed' and profile_id is not null;
create unique index if not exists handoffs_one_open_per_call on public.handoffs (call_id) where state <> 'closed' and profile_id is null;
create index if not exists idx_handoffs_client on public.handoffs (client_id, created_at desc);
create index if not exists idx_handoffs_profile on public.handoffs (profile_id) where profile_id is not null;
create index if not exists idx_handoffs_session on public.handoffs (session_id) where session_id is not null;
create index if not exists idx_handoffs_call on public.handoffs (call_id) where call_id is not null;
comment on table public.handoffs is 'Conversations that a person of the team is to take: waiting -> taken -> closed. One a person is open.';
comment on column public.handoffs.number is 'In the order in which they came.';
comment on column public.handoffs.profile_id is 'Null: an anonymous caller.';
comment on column public.handoffs.call_id is 'The call in which it was asked for, else the newest before.';
comment on column public.handoffs.channel is 'Where the person was: voice, whatsapp, sms; null: elsewhere.';
comment on column public.handoffs.department is 'sales, support, transport, billing, safety; null: anybody.';
comment on column public.handoffs.reason is 'For the colleague, by the agent.';
comment on column public.handoffs.transfer_to is 'Number that the call was to be put through to; null: it was not.';
comment on column public.handoffs.transfer_outcome is 'What the relay told of that: confirmed, failed, unknown.';
comment on column public.handoffs.taken_by is 'The operator, as they call themselves.';
comment on column public.handoffs.state is 'waiting: in the queue; taken: an operator is at it; closed.';
comment on column public.handoffs.urgent is 'Taken before those that are not.';
comment on column public.handoffs.closed_by is 'The operator; relay: the call was put through.';
comment on column public.handoffs.outcome is 'What came of it, in a few words.';

create or replace function private.tool_transfer_to_human(p_who jsonb, p_arguments jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_client uuid := (p_who ->> 'client_id')::uuid;
  v_profile uuid := (p_who ->> 'profile_id')::uuid;
  v_call uuid := (p_who ->> 'call_id')::uuid;
  v_reason text := nullif(btrim(left(p_arguments ->> 'reason', 300)), '');
  v_department text := nullif(p_arguments ->> 'department', '');
  v_urgent boolean := coalesce(p_arguments ->> 'urgent' = 'yes', false);
  v_handoff public.handoffs;
  v_number text;
  v_before bigint;
begin
  if v_reason is null then
    return private.tool_refused('reason is missing: say why, for the colleague');
  elsif v_profile is null and v_call is null then
    return private.tool_refused('nobody is known here who could be handed over');
  end if;
  perform private.lock_refs(array['handoff:' || v_client || ':' || coalesce(v_profile, v_call)]);
  -- Only a call that runs can be put through; the relay puts it through if its trunk allows the number.
  if p_who ->> 'surface' = 'voice' then
    select coalesce(c.settings #>> array['handoff_numbers', v_department], c.settings ->> 'handoff_number') into v_number
      from public.clients c where c.id = v_client;
    if not private.is_e164(v_number) then
      v_number := null;
    end if;
  end if;
  select h.* into v_handoff from public.handoffs h
   where h.client_id = v_client and h.state <> 'closed' and (h.profile_id = v_profile or v_profile is null and h.profile_id is null and h.call_id = v_call)
     for no key update;
  if found then
    update public.handoffs h
       set reason = v_reason, department = coalesce(v_department, h.department), urgent = h.urgent or v_urgent, call_id = coalesce(v_call, h.call_id),
           session_id = coalesce((p_who ->> 'session_id')::uuid, h.session_id), channel = coalesce(p_who ->> 'channel', h.channel),
           transfer_to = coalesce(v_number, h.transfer_to)
     where h.id = v_handoff.id
    returning * into v_handoff;
  else
    insert into public.handoffs (client_id, profile_id, session_id, call_id, channel, department, urgent, reason, transfer_to, correlation_id, created_at)
    values (v_client, v_profile, (p_who ->> 'session_id')::uuid, v_call, p_who ->> 'channel', v_department, v_urgent, v_reason, v_number,
      p_who ->> 'correlation_id', p_now)
    returning * into v_handoff;
  end if;
  select count(*) into v_before
    from (select from public.handoffs h
           where h.client_id = v_client and h.state = 'waiting' and h.id <> v_handoff.id
             and (h.urgent, -h.number) > (v_handoff.urgent, -v_handoff.number) limit 100) x;
  return private.tool_answered(jsonb_strip_nulls(jsonb_build_object(
    'state', v_handoff.state, 'waiting_before', case v_handoff.state when 'waiting' then v_before end, 'transfer_to', v_number,
    'say', case when v_number is not null then 'the call is being put through'
                when v_handoff.state = 'taken' then 'a colleague is at it already'
                else 'a colleague has been asked and will call or write back; promise no time' end)));
end
$$;
comment on function private.tool_transfer_to_human is
  'Tool: puts the person into the queue of the team; in a call also says whom the relay is to put it through to (clients.settings: handoff_number, handoff_numbers {department: number}).';

create or replace function public.take_handoff(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_operator text := private.required(p, 'operator');
  v_client uuid := private.required(p, 'client_id')::uuid;
  v_department text := nullif(p ->> 'department', '');
  v_handoff public.handoffs;
begin
  -- Whoever asks at the same moment gets the next one, and waits for nobody.
  update public.handoffs h
     set state = 'taken', taken_by = left(v_operator, 200), taken_at = private.now_of(p)
   where h.id = (
     select w.id from public.handoffs w
      where w.client_id = v_client and w.state = 'waiting' and (p ->> 'id' is null or w.id = (p ->> 'id')::uuid)
        and (v_department is null or w.department is null or w.department = v_department)
      order by w.urgent desc, w.number
      limit 1
        for no key update skip locked)
  returning * into v_handoff;
  if not found then
    return jsonb_build_object('decision', 'none');
  end if;
  return jsonb_build_object('decision', 'taken', 'handoff', to_jsonb(v_handoff),
    'phone_number', (select p.phone_number from public.profiles p where p.id = v_handoff.profile_id),
    'context', case when v_handoff.session_id is not null then private.agent_context(v_handoff.session_id, 20) end);
end
$$;
comment on function public.take_handoff is
  'RPC: an operator takes the next hand-over that waits, urgent ones first: {operator, client_id, department?, id?} -> {decision: taken | none, handoff, phone_number, context}.';

create or replace function public.close_handoff(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_handoff public.handoffs;
begin
  update public.handoffs h
     set state = 'closed', closed_at = private.now_of(p), closed_by = left(private.required(p, 'operator'), 200), outcome = left(p ->> 'outcome', 500)
   where h.id = private.required(p, 'id')::uuid and h.state <> 'closed' and (p ->> 'client_id' is null or h.client_id = (p ->> 'client_id')::uuid)
  returning * into v_handoff;
  if not found then
    raise exception using errcode = 'PT404', message = 'there is no open hand-over of that id';
  end if;
  return to_jsonb(v_handoff);
end
$$;
comment on function public.close_handoff is 'RPC: an operator has done with a hand-over, or gives it up: {id, operator, client_id?, outcome?}.';

create or replace function public.release_handoff(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_handoff public.handoffs;
begin
  update public.handoffs h set state = 'waiting', taken_by = null, taken_at = null
   where h.id = private.required(p, 'id')::uuid and h.state = 'taken' and h.taken_by = private.required(p, 'operator')
  returning * into v_handoff;
  if not found then
    raise exception using errcode = 'PT404', message = 'this operator has taken no hand-over of that id';
  end if;
  return to_jsonb(v_handoff);
end
$$;
comment on function public.release_handoff is 'RPC: an operator gives back what they have taken; it waits again in its old place: {id, operator}.';

create or replace function private.note_transfer() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_outcome text := case when new.payload ->> 'outcome' in ('confirmed', 'failed') then new.payload ->> 'outcome' else 'unknown' end;
begin
  -- What was put through waits no more; what was not is called back.
  update public.handoffs h
     set transfer_outcome = v_outcome,
         state = case when v_outcome = 'confirmed' then 'closed' else h.state end,
         closed_at = case when v_outcome = 'confirmed' then clock_timestamp() else h.closed_at end,
         closed_by = case when v_outcome = 'confirmed' then 'relay' else h.closed_by end,
         outcome = case when v_outcome = 'confirmed' then 'the call was put through' else h.outcome end
   where h.call_id = new.call_id and h.state <> 'closed' and h.transfer_to is not null;
  return null;
end
$$;
comment on function private.note_transfer is 'Trigger: what the relay told of putting a call through.';
drop trigger if exists voice_events_note_transfer on public.voice_events;
create trigger voice_events_note_transfer after insert on public.voice_events for each row when (new.type = 'transferred')
  execute function private.note_transfer();

create or replace function private.erase_handoffs_of_call() returns trigger
language plpgsql set search_path = '' as $$
begin
  delete from public.handoffs h where h.call_id = new.id;
  return null;
end
$$;
comment on function private.erase_handoffs_of_call is 'Trigger: a call that is forgotten leaves no reason behind, also where its caller had no profile.';
drop trigger if exists voice_calls_erase_handoffs on public.voice_calls;
create trigger voice_calls_erase_handoffs after update of erased_at on public.voice_calls for each row
  when (new.erased_at is not null and old.erased_at is null) execute function private.erase_handoffs_of_call();

drop trigger if exists handoffs_touch on public.handoffs;
create trigger handoffs_touch before update on public.handoffs for each row execute function private.touch_updated_at();
alter table public.handoffs enable row level security;
drop policy if exists handoffs_select on public.handoffs;
create policy handoffs_select on public.handoffs for select to authenticated
  using (profile_id = any (array(select private.my_profile_ids())) or client_id = any (array(select private.my_client_ids())));
revoke all on public.handoffs from public, anon, authenticated;
grant select on public.handoffs to authenticated;
grant select, insert, update, delete on public.handoffs to service_role;
revoke all on sequence public.handoffs_number_seq from public, anon, authenticated;
grant usage, select on sequence public.handoffs_number_seq to service_role;
revoke execute on function private.tool_transfer_to_human(jsonb, jsonb, timestamptz), public.take_handoff(jsonb), public.close_handoff(jsonb),
  public.release_handoff(jsonb), private.note_transfer(), private.erase_handoffs_of_call() from public, anon, authenticated;
grant execute on function private.tool_transfer_to_human(jsonb, jsonb, timestamptz), public.take_handoff(jsonb), public.close_handoff(jsonb),
  public.release_handoff(jsonb), private.note_transfer(), private.erase_handoffs_of_call() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121014020'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
