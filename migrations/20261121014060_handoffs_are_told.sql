-- 20261121014060_handoffs_are_told.sql
-- Somebody who waits for a person is an alert, which operators are told of, until one of them takes it.
-- Safe to run again. Locks handoffs briefly (a trigger). Undo: drop the trigger and the function.
create or replace function private.tell_of_handoff() returns trigger
language plpgsql set search_path = '' as $$
begin
  if tg_op <> 'DELETE' and new.state = 'waiting' then
    perform private.raise_alert('handoff_waiting', case when new.urgent then 'critical' else 'warning' end, 'handoff:' || new.id,
      'Somebody waits for a person: take the hand-over, or call back.',
      jsonb_build_object('number', new.number, 'channel', new.channel, 'department', new.department, 'urgent', new.urgent), new.client_id);
  else
    update public.alerts a set resolved_at = now() where a.dedupe_key = 'handoff:' || coalesce(new.id, old.id) and a.resolved_at is null;
  end if;
  return null;
end
$$;
comment on function private.tell_of_handoff is 'Trigger: an alert for each hand-over that waits, resolved when it is taken, closed or erased. It says nothing of the person.';
drop trigger if exists handoffs_tell on public.handoffs;
create trigger handoffs_tell after insert or delete or update of state, urgent, department on public.handoffs for each row
  execute function private.tell_of_handoff();
revoke execute on function private.tell_of_handoff() from public, anon, authenticated;
grant execute on function private.tell_of_handoff() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121014060'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
