-- 20261121012345_dead_letter_actions.sql
-- Dead letters are listed, put back and dropped by functions that may be called twice and that keep who wanted it, when and why.
-- Safe to run again. Locks dead_letters briefly (a column). Undo: drop the functions, the table and the column.

alter table public.dead_letters add column if not exists dropped_at timestamptz;
comment on column public.dead_letters.dropped_at is 'When an operator gave it up for good; its payload is gone since then.';
do $$
begin
  perform private.require_columns('public.dead_letters', '{"dropped_at": "timestamp with time zone"}');
end
$$;

create table if not exists public.dead_letter_actions (
  id uuid constraint dead_letter_actions_pkey primary key default gen_random_uuid(),
  dead_letter_id uuid not null constraint dead_letter_actions_dead_letter_id_fkey references public.dead_letters (id) on delete cascade,
  action text not null,
  reason text not null,
  requested_by text not null,
  job_id uuid,
  created_at timestamptz not null default now(),
  constraint dead_letter_actions_action_is_known check (action in ('replay', 'drop')),
  constraint dead_letter_actions_reason_is_given check (btrim(reason) <> '')
);
do $$
begin
  perform private.require_columns('public.dead_letter_actions', '{
    "id": "uuid", "dead_letter_id": "uuid", "action": "text", "reason": "text", "requested_by": "text", "job_id": "uuid",
    "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_dead_letter_actions_letter on public.dead_letter_actions (dead_letter_id);
comment on table public.dead_letter_actions is 'Each time that an operator put a dead letter back or dropped it; append-only.';
comment on column public.dead_letter_actions.action is 'replay, drop.';
comment on column public.dead_letter_actions.reason is 'In the operator''s words.';
comment on column public.dead_letter_actions.requested_by is 'The user of the token, else who they said they are and the role of the connection.';
comment on column public.dead_letter_actions.job_id is 'Of a replay: the row of jobs that the next sweep puts onto its queue.';

create or replace function private.is_replayable(p_letter public.dead_letters) returns boolean
language plpgsql immutable set search_path = '' as $$
begin
  -- Only an envelope may become a job row: anything else goes round its queue and comes back as a dead letter.
  return coalesce(p_letter.dropped_at is null and p_letter.reason <> 'too_large_for_its_queue'
    and p_letter.payload ->> 'v' = '1' and jsonb_typeof(p_letter.payload -> 'body') = 'object', false);
end
$$;
comment on function private.is_replayable is 'Whether a dead letter has what its queue needs to do the work again.';

create or replace function public.list_dead_letters(p jsonb default '{}') returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  v_limit integer := least(greatest(coalesce((p ->> 'limit')::integer, 50), 1), 500);
  v_all boolean := coalesce((p ->> 'all')::boolean, false);
  v_payload boolean := coalesce((p ->> 'payload')::boolean, false);
begin
  return coalesce((
    select jsonb_agg(jsonb_build_object(
             'id', l.id, 'created_at', l.created_at, 'queue', l.queue, 'reason', l.reason, 'attempts', l.attempts,
             'correlation_id', l.correlation_id, 'message_id', l.message_id, 'client_id', l.client_id,
             'replayable', private.is_replayable(l), 'replayed_at', l.replayed_at, 'dropped_at', l.dropped_at,
             'payload_bytes', octet_length(l.payload::text),
             'actions', coalesce((select jsonb_agg(jsonb_build_object('action', a.action, 'at', a.created_at, 'by', a.requested_by, 'reason', a.reason)
                                    order by a.created_at)
                                    from public.dead_letter_actions a where a.dead_letter_id = l.id), '[]'))
             || case when v_payload then jsonb_build_object('payload', l.payload) else '{}' end
           order by l.created_at desc, l.id)
      from (
        select d.* from public.dead_letters d
         where (p ->> 'id' is null or d.id = (p ->> 'id')::uuid)
           and (p ->> 'queue' is null or d.queue = p ->> 'queue')
           and (v_all or p ->> 'id' is not null or d.replayed_at is null and d.dropped_at is null)
         order by d.created_at desc, d.id limit v_limit
      ) l), '[]');
end
$$;
comment on function public.list_dead_letters is
  'For operators, {id?, queue?, all?, payload?, limit?}: dead letters that nobody has settled, newest first; all: the others too; payload: with numbers and texts.';

create or replace function private.note_dead_letter_action(p jsonb, p_letter public.dead_letters, p_action text, p_job_id uuid, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
begin
  insert into public.dead_letter_actions (dead_letter_id, action, reason, requested_by, job_id, created_at)
  values (p_letter.id, p_action, btrim(private.required(p, 'reason')),
    coalesce(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub',
             case when nullif(btrim(p ->> 'by'), '') is null then session_user::text else format('%s (%s)', btrim(p ->> 'by'), session_user) end),
    p_job_id, p_now);
  -- The last one of its kind is settled: so is the alert.
  if not exists (select from public.dead_letters d
                  where d.queue = p_letter.queue and d.reason is not distinct from p_letter.reason and d.id <> p_letter.id
                    and d.replayed_at is null and d.dropped_at is null) then
    update public.alerts set resolved_at = p_now
     where dedupe_key = 'dead_letter:' || p_letter.queue || ':' || coalesce(p_letter.reason, 'unknown') and resolved_at is null;
  end if;
end
$$;
comment on function private.note_dead_letter_action is 'Keeps what an operator did with a dead letter, and closes the alert when none of its kind is left.';

create or replace function public.replay_dead_letter(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_letter public.dead_letters;
  v_job_id uuid;
begin
  perform private.required(p, 'reason');
  select * into v_letter from public.dead_letters where id = private.required(p, 'id')::uuid for no key update;
  if not found then
    raise exception using errcode = 'PT404', message = 'dead letter not found';
  end if;
  if v_letter.dropped_at is not null then
    raise exception using errcode = 'PT409', message = 'dead_letter_dropped', hint = 'Its payload is gone.';
  end if;
  if v_letter.replayed_at is not null then
    return jsonb_build_object('id', v_letter.id, 'status', 'already_replayed', 'replayed_at', v_letter.replayed_at);
  end if;
  if not private.is_replayable(v_letter) then
    raise exception using errcode = 'PT409', message = 'dead_letter_without_envelope',
      hint = case when v_letter.message_id like 'call:%' then 'It holds ids only: see resend_call_notification.'
                  else 'It holds ids only, or more than its queue takes.' end;
  end if;
  -- The letters of a staging stage name its own queue; job rows name queues as the code does.
  v_job_id := (public.enqueue_job(jsonb_build_object('queue', regexp_replace(v_letter.queue, '-staging$', ''), 'payload', v_letter.payload,
    'reason', 'replayed', 'correlation_id', v_letter.correlation_id)) ->> 'id')::uuid;
  update public.dead_letters set replayed_at = v_now where id = v_letter.id;
  perform private.note_dead_letter_action(p, v_letter, 'replay', v_job_id, v_now);
  return jsonb_build_object('id', v_letter.id, 'status', 'replayed', 'job_id', v_job_id);
end
$$;
comment on function public.replay_dead_letter is
  'For operators, {id, reason, by?}: the next sweep puts the work of a dead letter onto its queue again; {status: replayed | already_replayed}. One that fails again can be replayed again.';

create or replace function public.drop_dead_letter(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_letter public.dead_letters;
begin
  perform private.required(p, 'reason');
  select * into v_letter from public.dead_letters where id = private.required(p, 'id')::uuid for no key update;
  if not found then
    raise exception using errcode = 'PT404', message = 'dead letter not found';
  end if;
  if v_letter.dropped_at is not null then
    return jsonb_build_object('id', v_letter.id, 'status', 'already_dropped', 'dropped_at', v_letter.dropped_at);
  end if;
  update public.dead_letters set dropped_at = v_now, payload = null where id = v_letter.id;
  perform private.note_dead_letter_action(p, v_letter, 'drop', null, v_now);
  return jsonb_build_object('id', v_letter.id, 'status', 'dropped');
end
$$;
comment on function public.drop_dead_letter is
  'For operators, {id, reason, by?}: a dead letter is given up for good and its payload removed; {status: dropped | already_dropped}. The row stays, with who wanted it and why.';

drop trigger if exists dead_letter_actions_append_only on public.dead_letter_actions;
create trigger dead_letter_actions_append_only before update on public.dead_letter_actions
  for each row execute function private.refuse_change();
drop trigger if exists dead_letter_actions_keep on public.dead_letter_actions;
create trigger dead_letter_actions_keep before delete on public.dead_letter_actions
  for each row when (current_user in ('anon', 'authenticated', 'service_role')) execute function private.refuse_change();
alter table public.dead_letter_actions enable row level security;
drop policy if exists dead_letter_actions_select on public.dead_letter_actions;
create policy dead_letter_actions_select on public.dead_letter_actions for select to authenticated using (false);
revoke all on public.dead_letter_actions from public, anon, authenticated;
grant select, insert on public.dead_letter_actions to service_role;
revoke execute on function private.is_replayable(public.dead_letters), private.note_dead_letter_action(jsonb, public.dead_letters, text, uuid, timestamptz),
  public.list_dead_letters(jsonb), public.replay_dead_letter(jsonb), public.drop_dead_letter(jsonb) from public, anon, authenticated;
grant execute on function private.is_replayable(public.dead_letters), private.note_dead_letter_action(jsonb, public.dead_letters, text, uuid, timestamptz),
  public.list_dead_letters(jsonb), public.replay_dead_letter(jsonb), public.drop_dead_letter(jsonb) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012345'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
